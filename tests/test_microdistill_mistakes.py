"""Mistakes that real projects made, planted into microdistill one at a time: the named test has to fail.

A test that cannot fail proves nothing. Each mistake is one change of the text, and one test of ``test_microdistill.py``, with
its arguments, that notices.
"""

from __future__ import annotations

import types

import pytest
import test_microdistill as held

BETWEEN = "no relu, so zero points are not 0"
integers = (held.test_integer_models_are_equal_bit_for_bit, (BETWEEN, 0))
ties = (held.test_masks_with_ties_and_with_masks_already_there, (0,))
soft = (held.test_gradients_of_distillation, (4.0, held.np.float64))
rounding = (held.test_rounding_is_half_to_even_by_a_division_and_clipping_comes_before_the_cast, ())

MISTAKES = {
    "backward in the order of definition": (
        "for tensor in reversed(order):", "for tensor in order[-1:] + sorted(order[:-1], key=id):",
        held.test_a_tensor_that_is_used_twice_reports_once_it_is_complete, ()),
    "a gradient overwrites the one before": (
        "tensor.grad = g if tensor.grad is None else tensor.grad + g", "tensor.grad = g", *soft),
    "grad[ids] += g": ("np.add.at(g_table, ids, g)", "g_table[ids] += g",
                       held.test_ids_that_occur_twice_get_both_gradients, ()),
    "broadcast gradients are not summed": (
        "vjps = (lambda g: unbroadcast(g, shapes[0]), lambda g: unbroadcast(g, shapes[1]))",
        "vjps = (lambda g: unbroadcast(g, shapes[0]), lambda g: g[0] if shapes[1] != g.shape else g)",
        held.test_gradients_of_cross_entropy_with_large_logits, ()),
    "softmax without its largest number": ("z = z - z.max(axis=1, keepdims=True)", "z = z * 1",
                                           held.test_gradients_of_cross_entropy_with_large_logits, ()),
    "no T squared": ("temperature**2 * (q", "(q", *soft),
    "no T squared in the gradient": ("g * (p - q) * t / log_p", "g * (p - q) / t / log_p", *soft),
    "KL reversed": ("(q * (log_q - log_p)).sum()", "(p * (log_p - log_q)).sum()", *soft),
    "mean over the classes": ("log_q - log_p)).sum() / n", "log_q - log_p)).mean()", *soft),
    "alpha weighs the hard term": ("temperature) * alpha\n", "temperature) * (1 - alpha)\n", *soft),
    "temperature for the student alone": ("np.asarray(teacher_logits, logits.data.dtype) / t",
                                          "np.asarray(teacher_logits, logits.data.dtype)", *soft),
    "no bias correction in Adam": ("m / (1 - self.beta1**self.steps)", "m", held.test_twenty_steps_with_masks, ()),
    "eps inside the root": ("(np.sqrt(v_hat) + self.eps)", "np.sqrt(v_hat + self.eps)",
                            held.test_twenty_steps_with_masks, ()),
    "moments are not masked": ("p.data * p.kept, m * p.kept, v * p.kept", "p.data * p.kept, m, v",
                               held.test_twenty_steps_with_masks, ()),
    "momentum revives pruned weights": ("if p.kept is not None:", "if False:", held.test_twenty_steps_with_masks, ()),
    "ties in no order": ('kind="stable"', 'kind="quicksort"', *ties),
    "a threshold prunes all ties": (
        "kept[np.argsort(size, kind=\"stable\")[: round(sparsity * len(size))]] = False",
        "kept[size <= np.sort(size)[max(round(sparsity * len(size)) - 1, 0)]] = False", *ties),
    "masks guessed from zeros": ("if w.kept is None else ~w.kept", "if w.kept is None else w.data == 0", *ties),
    "every layer for itself": (
        "kept[np.argsort(size, kind=\"stable\")[: round(sparsity * len(size))]] = False",
        "kept[: weights[0].data.size][np.argsort(size[: weights[0].data.size], kind=\"stable\")"
        "[: round(sparsity * weights[0].data.size)]] = False", *ties),
    "truncation for rounding": ("np.rint(np.asarray(x, F) / scale)", "np.trunc(np.asarray(x, F) / scale)", *integers),
    "half away from zero": ("np.rint(np.asarray(x, F) / scale)",
                            "np.trunc(np.asarray(x, F) / scale + np.copysign(F(0.5), x))", *rounding),
    "a rounded reciprocal": ("np.asarray(x, F) / scale)", "np.asarray(x, F) * (F(1) / scale))", *rounding),
    "zero point before rounding": ("np.rint(np.asarray(x, F) / scale) + F(zero_point)",
                                   "np.rint(np.asarray(x, F) / scale + F(zero_point))", *rounding),
    "clip after the cast": (
        "return q.astype(np.int8 if low < 0 else np.uint8)",
        "q = np.rint(np.asarray(x, F) / scale) + F(zero_point)\n"
        "    return np.clip(q.astype(np.int64).astype(np.int8 if low < 0 else np.uint8), low, high)", *rounding),
    "weights down to -128": ("self.weight_scale, 0, -127, 127)", "self.weight_scale * F(127 / 128), 0, -128, 127)",
                             *integers),
    "0 outside of the range": ("F(min(x.min(), 0)), F(max(x.max(), 0))", "F(x.min()), F(x.max())",
                               held.test_ranges_that_do_not_hold_zero, (16, 64)),
    "a scale of 0 for zeros": ("return np.where(scale > 0, np.maximum(scale, max(tiny, tiny / input_scale)), F(1))",
                               "return scale", held.test_dead_units_and_pruned_weights, ()),
    "one scale for the whole weight": ("np.abs(weight).max(axis=0)", "np.abs(weight).max()", *integers),
    "no room for the bias": ("np.abs(bias) / room / input_scale", "0", held.test_a_large_bias_has_room_beside_the_products,
                             ()),
    "bias of 8 bits": ("astype(np.int32)\n        self.relu", "astype(np.int8)\n        self.relu", *integers),
    "zero point of the inputs forgotten": ("q.astype(np.int32) - self.zero_point", "q.astype(np.int32)", *integers),
    "sums of 16 bits": (
        "(q.astype(np.int32) - self.zero_point) @ self.weight.astype(np.int32) + self.bias",
        "((q.astype(np.int32) - self.zero_point) @ self.weight.astype(np.int32)).astype(np.int16) + self.bias", *integers),
    "multiplier in another order": ("self.sum_scale / following.scale", "self.scale / following.scale * self.weight_scale",
                                    *integers),
    "the multiplier is rounded to 16 bits": (
        "self.sum_scale / following.scale", "(self.sum_scale / following.scale).astype(np.float16).astype(F)", *integers),
    "zero point of the layer before": ("following.zero_point\n", "self.zero_point\n", *integers),
    "one scale for the whole table": ("self.scale[ids][:, None]", "self.scale.max()",
                                      held.test_embedding_rows_have_a_scale_each, ()),
    "rows without weights are forgotten": ("minlength=len(weight)", "minlength=0",
                                           held.test_zeros_that_are_left_out_come_back, ()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_mistake_is_caught(mistake, monkeypatch):
    right, wrong, test, arguments = MISTAKES[mistake]
    text = held.PATH.read_text(encoding="utf-8")
    assert text.count(right) == 1, "the text that the mistake replaces"
    module = types.ModuleType("microdistill")
    exec(compile(text.replace(right, wrong), "microdistill.py", "exec"), vars(module))
    monkeypatch.setattr(held, "micro", module)
    with pytest.raises((AssertionError, IndexError, TypeError, ValueError, KeyError)):
        test(*arguments)


def test_nothing_is_caught_without_a_mistake():
    for _, _, test, arguments in MISTAKES.values():
        test(*arguments)
