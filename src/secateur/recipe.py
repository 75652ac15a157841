"""What a recipe may say: the model, what to remove and select, and how to ship and check it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from secateur.units import Aggregate, Normalise, Scope, Structure, Unit

SCHEMA_VERSION: Literal[1] = 1

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Shapes = dict[str, tuple[int, ...]]
Amounts = tuple[int | float, int | float, int | float]

_SHAPE = re.compile(r"(?P<name>[^:,]+):(?P<sizes>\d+(?:x\d+)*)")


def parse_shapes(text: str) -> Shapes:
    """Read trtexec's form of named shapes, ``input_ids:1x16,attention_mask:1x16``.

    Raises:
        ValueError: a part is not ``name:1x2x3``, or a name is given twice.
    """
    shapes: Shapes = {}
    for part in text.replace(" ", "").split(","):
        match = _SHAPE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a shape; write name:1x16, joined by commas")
        if match["name"] in shapes:
            raise ValueError(f"the shape of {match['name']!r} is given twice")
        shapes[match["name"]] = tuple(int(size) for size in match["sizes"].split("x"))
    return shapes


def _shapes(value: object) -> object:
    return parse_shapes(value) if isinstance(value, str) else value


NamedShapes = Annotated[
    Shapes,
    BeforeValidator(_shapes, json_schema_input_type=str),
    Field(description="named shapes as trtexec writes them: input_ids:1x16,attention_mask:1x16"),
]


class _Strict(BaseModel):
    """A frozen part of a recipe; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSource(_Strict):
    """Where the trained model comes from, and how it is exported."""

    source: str
    """A folder or hub name (safetensors), ``pkg.module:function``, or an .onnx file."""
    opset: Annotated[int, Field(ge=18, le=24)] = 20
    """ONNX opset to export with; an .onnx file keeps its own."""
    dynamic: dict[str, dict[int, str]] = Field(default_factory=dict)
    """Names of the dynamic axes, by input and axis; empty takes the family's own."""


class Data(_Strict):
    """The user's inputs: for importance, parity, goldens and the samples of the report."""

    texts: Path | None = None
    """One text a line, tokenised with the model's own tokenizer: a file, or a folder of .txt."""
    images: Path | None = None
    """A folder of pictures, scaled as the model's own folder says."""
    npz: Path | None = None
    """Arrays by input name; the first axis counts the samples."""
    loader: str | None = None
    """``file.py:function`` (or ``pkg.module:function``) yielding dicts of input name to array."""
    max_length: Positive = 128
    """Texts are cut to this many tokens."""
    limit: Positive = 512
    """Use at most this many samples."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = ("texts", "images", "npz", "loader")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            wanted, got = ", ".join(sources), ", ".join(given) or "none"
            raise ValueError(f"needs exactly one of {wanted}; got {got}")
        return self


class LearnedTokens(_Strict):
    """Tokens that an earlier checkpoint knew less well and that look at the prompt: ssToken's."""

    by: Literal["learned"]
    before: str
    """The earlier checkpoint, named as a model's source is; it takes the same inputs."""
    prompt: Positive = 1
    """Leading tokens of each sample that are its prompt; they do not count."""
    balance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Weight of what was learned, against that of attention to the prompt."""
    layer: str = ""
    """The attention block that is looked at; empty: the last one whose probabilities show."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """Share of each response that counts."""
    weigh: bool = False
    """Let all tokens of a response count, by their scores, instead of the best share alike."""


class UncertainTokens(_Strict):
    """The least likely tokens of samples that the model is surely wrong about: Q-Tuning's too.

    Other samples keep all of their tokens.
    """

    by: Literal["q_tuning"]
    neighbours: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Weight of the tokens beside a token, against that of its own perplexity."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """Share of the tokens of such a sample that counts."""


class Calibrate(_Strict):
    """Which samples of ``data`` importance, compensation and quantisation look at."""

    choose: Literal["first", "lexrank", "q_tuning"] = "first"
    """``first``; ``lexrank``: the most central; ``q_tuning``: those that the model is surely wrong
    or unsurely right about, for models that score the next token."""
    samples: Positive = 48
    """How many."""
    tokens: Annotated[LearnedTokens | UncertainTokens, Field(discriminator="by")] | None = None
    """Which of their tokens count, for models that score the next token; empty: all alike."""


class Removal(_Strict):
    """One kind of unit to remove when the engine is built."""

    what: Unit
    ratio: Share
    """Share of the units that goes, as in 0.25 of the heads."""
    importance: str = "l2"
    """Which criterion ranks the units; ``secateur methods`` lists them."""
    scope: Scope = "local"
    """Rank within each layer, or over all layers together; or first share out what goes: ``cfsp``
    by how far each layer turns its tokens, ``tyr`` by an evolutionary search, ``flap`` by one of
    FLAP's structures."""
    structure: Structure = "AL-AM"
    """With ``scope: flap``: ``UL-UM`` the same share of every layer; ``UL-MM`` so many heads of
    every layer, and neurons for the rest; ``AL-MM`` the same over all layers together; ``AL-AM``
    heads and neurons of all layers ranked together, by what they cost."""
    remove_heads: Annotated[int, Field(ge=0)] = 0
    """Heads of the whole model that go, with ``UL-MM`` and ``AL-MM``."""
    journal: Path | None = None
    """Where a search (``scope: tyr``) keeps what it found, so that it goes on when interrupted."""
    round_to: Positive = 1
    """Kept units per layer are a multiple of this."""
    at_least: Annotated[int, Field(ge=0)] = 0
    """Every layer keeps this many; with 0 a ratio that would empty a layer is refused."""
    limits: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(default_factory=dict)
    """Largest share that may go, by name of a group or pattern: ``*layer.0*: 0``."""
    aggregate: Aggregate = "sum"
    """How the scores of a unit in each weight of its group become one."""
    normalise: Normalise = "sum"
    """By what the scores of a layer are divided before all layers are ranked together."""
    allow_inexact: bool = False
    """Also cut what a norm is taken over; the result is renormalised, not equal."""
    allow_outputs: tuple[str, ...] = ()
    """Outputs of the model whose shape may change."""
    allow_ids: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Inputs that give ids of rows that may go, each with the id (of the unknown token) that is
    read in place of one whose row is gone: ``input_ids: 100``."""


class Selection(_Strict):
    """One place where the running model drops tokens."""

    site: str
    """The attention block after which tokens go, as ``encoder.layer.1``."""
    by: str = "class_row"
    """Which selector ranks the tokens; ``secateur methods`` lists them."""
    keep: int | float
    """A share in (0, 1) of each sample's valid tokens, or a whole number of tokens: a sample with
    fewer keeps all, and a number that no input of the profiles reaches is refused."""
    protected: Annotated[int, Field(ge=0)] = 1
    """Leading tokens that are always kept (the class token)."""
    budget: Literal["input", "constant"] = "input"
    """``input``: the ratio can be changed at run time; ``constant``: it is part of the graph."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the selector that are not left at their default."""
    cut: str = "block"
    """Where tokens leave: ``block`` or ``attention`` of the site, a value, or a module path."""
    signals: dict[str, str] = Field(default_factory=dict)
    """Values or modules that give signals which no site has, or ``input:<width>``."""
    among: str = ""
    """A value or a module whose tokens alone are selected from: a picture's between words."""
    leaves: str = ""
    """A value or a module: what tokens that leave have where ``restore`` puts all back."""
    close_gaps: bool = False
    """Tokens that stay are neighbours from there on: what a state-space model needs."""
    class_token: bool = False
    """The first token is a class token, where the graph does not show one."""

    @field_validator("keep", mode="before")
    @classmethod
    def _share_or_count(cls, keep: object) -> object:
        count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
        if count or (isinstance(keep, float) and 0 < keep < 1):
            return keep
        raise ValueError("is a share in (0, 1) or a whole number of tokens, at least 1")

    @property
    def is_share(self) -> bool:
        """Whether ``keep`` is a share of the valid tokens rather than a count."""
        return self.keep < 1

    @property
    def amount(self) -> int:
        """The budget as the graph takes it: permille for a share, else the count."""
        return round(self.keep * 1000) if self.is_share else int(self.keep)


class Profile(_Strict):
    """The shapes an engine must take, by input."""

    min: NamedShapes
    opt: NamedShapes
    max: NamedShapes
    keep: dict[str, Amounts] = Field(default_factory=dict)
    """Range of a site's budget, [min, opt, max], as shares or counts; empty: all that can be."""

    @field_validator("keep")
    @classmethod
    def _rising(cls, keep: dict[str, Amounts]) -> dict[str, Amounts]:
        for site, (low, usual, high) in keep.items():
            if not 0 < low <= usual <= high:
                raise ValueError(f"{site}: wanted 0 < min <= opt <= max")
        return keep

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if not set(self.min) == set(self.opt) == set(self.max):
            raise ValueError("min, opt and max must name the same inputs")
        for name, low in self.min.items():
            usual, high = self.opt[name], self.max[name]
            if not len(low) == len(usual) == len(high):
                raise ValueError(f"{name}: min, opt and max have different ranks")
            if any(not a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
                raise ValueError(f"{name}: wanted min <= opt <= max on every axis")
        return self

    @property
    def ranges(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(min, opt, max) shape by input name."""
        return {name: (low, self.opt[name], self.max[name]) for name, low in self.min.items()}


class Traffic(_Strict):
    """Profiles from recorded requests, instead of shapes."""

    file: Path
    """What ``python -m secateur.runtime run --record FILE`` wrote, one request a line."""
    profiles: Annotated[int, Field(ge=1, le=16)] = 1
    """At most this many profiles; requests are divided where their sizes differ most."""


PrecisionType = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[PrecisionType, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The types as NumPy and the table of tolerances spell them."""


class Precision(_Strict):
    """What the shipped graph computes in, written into the graph: the same on every target."""

    type: PrecisionType = "fp32"
    keep: tuple[str, ...] = ()
    """Modules or nodes that stay in float32, by name or pattern: ``encoder.layer.3*``."""


def _type_alone(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


AnyPrecision = Annotated[
    Precision, BeforeValidator(_type_alone, json_schema_input_type=PrecisionType | Precision)
]


class Quantise(_Strict):
    """Fewer bits by explicit Q/DQ in what is shipped; what selects tokens stays as it is."""

    kind: Literal["int8", "fp8", "int4"] = "int8"
    """``int8`` and ``fp8`` round activations and weights, ``int4`` weights alone."""
    ranges: Literal["minmax", "percentile", "entropy", "mse"] = "percentile"
    """How the range of an activation is found on the data."""
    weights: Literal["nearest", "gptq"] = "nearest"
    """Round to the nearest, or with GPTQ."""
    tokens: Literal["uniform", "norm", "distance", "attention"] = "uniform"
    """By what tokens count in GPTQ, as in RSQ."""
    block: Annotated[int, Field(ge=16)] = 32
    """Inputs that share a scale, with ``int4``: a power of two."""
    rotate: bool = False
    """Turn the residual stream first, as RSQ does; for pre-norm models with RMSNorm."""
    keep: tuple[str, ...] = ()
    """Weights that are not rounded, by name or pattern: ``*layer.0*``."""


def _kind_alone(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


AnyQuantise = Annotated[
    Quantise,
    BeforeValidator(_kind_alone, json_schema_input_type=Literal["int8", "fp8", "int4"] | Quantise),
]


class Parity(_Strict):
    """How equal is equal; every bound is fixed before anything is compared."""

    precision: Literal["same", "float32", "float16", "bfloat16", "int8"] = "same"
    """Which row of the table of tolerances holds; ``same`` is that of the graph's precision."""
    task: Literal["embedding", "top1", "none"] = "none"
    """What the deployed model is compared with the dense one by, on the user's data."""
    output: str = ""
    """Output that the task reads; empty takes the first one."""
    samples: Positive = 48
    """How many of the user's samples the engines are compared on, in ragged batches."""
    batch: Positive = 8
    """Samples in a batch of the comparison."""


class Bench(_Strict):
    """What is timed, dense and pruned interleaved in one run."""

    variants: tuple[Literal["tokens", "removal", "combined"], ...] = ("tokens", "combined")
    batches: tuple[Positive, ...] = (1, 8)
    tokens: Positive = 128
    processes: Positive = 3
    """Fresh processes; the median over them is reported."""
    pairs: Positive = 20
    """Interleaved dense and pruned runs in each process."""
    minimum_efficiency: Annotated[float, Field(ge=0)] = 0.0
    """Below this speed-up efficiency the command ends with exit code 1."""


class Report(_Strict):
    """The one-file HTML report."""

    samples: Positive = 6
    """Sample inputs whose kept tokens are shown."""


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, Mapping | Profile) else value


Profiles = Annotated[
    tuple[Profile, ...],
    BeforeValidator(_one_or_several, json_schema_input_type=Profile | tuple[Profile, ...]),
]


class Recipe(_Strict):
    """Everything ``secateur deploy`` does, in one file."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: ModelSource
    data: Data | None = None
    calibrate: Calibrate = Calibrate()
    remove: tuple[Removal, ...] = ()
    plan: Path | None = None
    """A removal plan (JSON) to apply instead of making one from ``remove``."""
    arrays: Path | None = None
    """An .npz from training, by parameter name: gradients and what else a criterion asks for."""
    compensate: str = "none"
    """How the weights that read what goes make up for it; ``secateur methods`` lists them."""
    select: tuple[Selection, ...] = ()
    restore: tuple[str, ...] = ()
    """Values or modules behind the sites at which all tokens are put back: before a grid."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnxruntime",)
    """``onnxruntime``, ``rtx:sm86,sm89``, ``tensorrt``."""
    profile: Profiles = ()
    """The shapes an engine must take; a list of several gives it as many profiles."""
    traffic: Traffic | None = None
    precision: AnyPrecision = Precision()
    """``fp16`` or ``bf16``, or with ``type`` and ``keep`` what is to stay in float32."""
    quantise: AnyQuantise | None = None
    """``int8``, ``fp8`` or ``int4``, or the keys below."""
    parity: Parity = Parity()
    bench: Bench | None = None
    report: Report = Report()
    cache: str = ""
    """Folder of engines that were built before, or ``off``; empty: SECATEUR_CACHE or the user's."""
    output: Path | None = None
    """Folder of the bundle; without it, build/<name> beside the recipe."""

    @property
    def tolerances(self) -> str:
        """Which row of the table of tolerances holds for what is shipped."""
        asked = self.parity.precision
        own = "int8" if self.quantise is not None else DTYPES[self.precision.type]
        return own if asked == "same" else asked

    @field_validator("model", mode="before")
    @classmethod
    def _plain_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.plan is not None and self.remove:
            raise ValueError("has both plan and remove; a plan replaces remove")
        if self.quantise is not None and self.precision.type != "fp32":
            raise ValueError("has both quantise and a half precision; give one of them")
        if self.profile and self.traffic is not None:
            raise ValueError("has both profile and traffic; give one of them")
        if self.restore and not self.select:
            raise ValueError("has restore and no select; nothing has left that could be put back")
        sites = [selection.site for selection in self.select]
        for site in sites:
            if sites.count(site) > 1:
                raise ValueError(f"select names the site {site!r} twice")
        return self


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors: put its address in ``$schema``."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


__all__ = [
    "DTYPES",
    "SCHEMA_VERSION",
    "Bench",
    "Calibrate",
    "Data",
    "LearnedTokens",
    "ModelSource",
    "Parity",
    "Precision",
    "Profile",
    "Recipe",
    "Removal",
    "Report",
    "Selection",
    "Traffic",
    "UncertainTokens",
    "json_schema",
    "parse_shapes",
]
