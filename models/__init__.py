"""What matters, on tensors: selectors, model families, reference runs (torch)."""

if __name__ != "secateur.models":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.models', not {__name__!r}")
