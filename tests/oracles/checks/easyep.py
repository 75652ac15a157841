"""EASY-EP: expert scores over samples, kept experts, the mixed-domain rule."""

from __future__ import annotations

import numpy as np

from secateur.calibration.allocation import best
from secateur.calibration.importance.easyep import (
    Routing,
    expert_scores,
    mixed,
    token_contribution,
)


def check(case) -> None:
    arrays = case.arrays
    n_experts, target = int(arrays["n_experts"]), int(arrays["target_number"])
    total = np.zeros(arrays["expert_score"].shape)
    for layer in range(int(arrays["num_layers"])):
        for sample in range(int(arrays["num_samples"])):
            key = f"S{sample}_L{layer}"
            moved = token_contribution(arrays[f"{key}_resid"][0], arrays[f"{key}_routed_out"][0])
            want = np.maximum(0, 1 - arrays[f"{key}_cos_before_after"][0])
            np.testing.assert_allclose(moved, want, atol=1e-5)
            routing = Routing(
                *(arrays[f"{key}_{name}"] for name in ("topk_idx", "topk_weight", "expert_norm"))
            )
            total[layer] += expert_scores(routing, moved, n_experts)
        assert best(total[layer], target) == tuple(arrays["kept_idx"][layer])
    np.testing.assert_allclose(total, arrays["expert_score"], rtol=1e-3, atol=1e-5)
    both = mixed((arrays["expert_score"], arrays["second_domain_score"]))
    np.testing.assert_allclose(both, arrays["mixed_score"], rtol=1e-4)
    for layer, kept in enumerate(arrays["mixed_kept_idx"]):
        assert best(both[layer], len(kept)) == tuple(kept)
