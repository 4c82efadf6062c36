"""An int8 graph in ONNX Runtime's own operators (domain com.microsoft), which its CPU kernels run faster than the standard ones.

The graph comes from ONNX Runtime's quantization with outputs left in floating point. ONNX Runtime finds some of this itself when it
loads a graph, but neither biases of statically quantized products nor attention between reshapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.runtimes import import_runtime

DOMAIN = "com.microsoft"


def fuse(path: Path) -> dict[str, int]:
    """Rewrite the graph at `path` in place; returns how many operators of each kind were made.

    - A product of quantized tokens with a quantized weight, and the bias after it: one MatMulIntegerToFloat.
    - Fused attention between the cuts into heads: one MultiHeadAttention over [B, N, g D], which works block by block, without whole maps.
    - GELU by its tanh form, FastGelu: at most 5e-4 beside the exact one, far below a step of the 8 bits that follow.
    """
    ir = import_runtime("onnx_ir", "export")
    model = ir.load(path)
    for rules in _rules():
        rules.apply_to_model(model)
    _sweep(model)
    ir.save(model, path)
    kinds = [node.op_type for node in model.graph if node.domain == DOMAIN]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _rules() -> list[Any]:
    """In the order in which they apply: a product with its bias before the product alone."""
    pattern = import_runtime("onnxscript.rewriter", "export").pattern

    class Attention(pattern.RewriteRuleClassBase):  # type: ignore[misc,name-defined]
        """Attention over [B, g, N, D] between the cuts into heads and back."""

        def pattern(self, op: Any, q: Any, k: Any, v: Any, cut_q: Any, cut_k: Any, cut_v: Any, joined: Any) -> Any:
            heads = [op.Transpose(op.Reshape(x, cut), perm=[0, 2, 1, 3]) for x, cut in ((q, cut_q), (k, cut_k), (v, cut_v))]
            attended = op.Attention(*heads, _outputs=["attended"])
            return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), joined)

        def check(self, op: Any, cut_q: Any, cut_k: Any, cut_v: Any, attended: Any, **_: Any) -> Any:
            result, attributes = pattern.MatchResult(), attended.producer().attributes
            if len([value for value in attended.producer().inputs if value is not None]) > 3:
                return result.fail("a mask or past keys")
            if any(attributes.get_int(name, 0) for name in ("is_causal", "qk_matmul_output_mode")) or attributes.get_float("softcap", 0.0):
                return result.fail("more than plain attention")
            heads = {_heads(cut) for cut in (cut_q, cut_k, cut_v)}
            return result if len(heads) == 1 and heads != {0} else result.fail("not one known number of heads")

        def rewrite(self, op: Any, q: Any, k: Any, v: Any, cut_q: Any, attended: Any, **_: Any) -> Any:
            scale = attended.producer().attributes.get_float("scale", None)
            options = {} if scale is None else {"scale": scale}
            return op.MultiHeadAttention(q, k, v, num_heads=_heads(cut_q), _domain=DOMAIN, **options)

    class Product(pattern.RewriteRuleClassBase):  # type: ignore[misc,name-defined]
        """A product whose two factors come out of DequantizeLinear."""

        def pattern(self, op: Any, x: Any, weight: Any) -> Any:
            return op.MatMul(x, weight)

        def check(self, op: Any, x: Any, weight: Any, **_: Any) -> Any:
            return pattern.MatchResult() if _quantized(x, weight) else pattern.MatchResult().fail("a factor is not quantized")

        def rewrite(self, op: Any, x: Any, weight: Any, **_: Any) -> Any:
            return _product(op, x, weight, None)

    class BiasedProduct(pattern.RewriteRuleClassBase):  # type: ignore[misc,name-defined]
        """The same with a number per channel added."""

        def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
            return op.Add(op.MatMul(x, weight), bias)

        def check(self, op: Any, x: Any, weight: Any, bias: Any, **_: Any) -> Any:
            if bias.const_value is None or len(bias.shape) != 1 or not _quantized(x, weight):
                return pattern.MatchResult().fail("no bias after a quantized product")
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: Any, weight: Any, bias: Any, **_: Any) -> Any:
            return _product(op, x, weight, bias)

    class Gelu(pattern.RewriteRuleClassBase):  # type: ignore[misc,name-defined]
        def pattern(self, op: Any, x: Any) -> Any:
            return op.Gelu(x)

        def rewrite(self, op: Any, x: Any, **_: Any) -> Any:
            return op.FastGelu(x, _domain=DOMAIN)

    found = ([Attention.rule()], BiasedProduct.rule().commute(), [Product.rule()], [Gelu.rule()])
    return [pattern.RewriteRuleSet(rules) for rules in found]


def _quantized(x: Any, weight: Any) -> bool:
    """Whether both come out of DequantizeLinear, the weight with scales alone."""
    sources = [value.producer() for value in (x, weight)]
    if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
        return False
    zero = sources[1].inputs[2] if len(sources[1].inputs) > 2 else None
    return zero is None or (zero.const_value is not None and not zero.const_value.numpy().any())


def _product(op: Any, x: Any, weight: Any, bias: Any) -> Any:
    (codes, scale, zero), (weights, scales, *_) = x.producer().inputs, weight.producer().inputs
    return op.MatMulIntegerToFloat(codes, weights, scale, scales, zero, None, bias, _domain=DOMAIN)


def _heads(cut: Any) -> int:
    """Of the shape [.., heads, width] that channels are cut into; 0 where it is not constant."""
    return 0 if cut.const_value is None else max(int(cut.const_value.numpy()[-2]), 0)


def _sweep(model: Any) -> None:
    """Remove what nothing reads any more."""
    passes = import_runtime("onnx_ir.passes.common", "export")
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
