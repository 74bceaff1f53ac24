"""LoRA on torch's `MultiheadAttention`, whose query, key and value are one parameter."""

from peft.tuners.lora.layer import MultiheadAttention
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from mergers import SheetbendError


class FusedAttention(MultiheadAttention):
    """PEFT's LoRA on `MultiheadAttention`, on the stacked projections of query, key and value alone.

    PEFT (to version 0.21) adds the update to the weight before each forward pass and subtracts it afterwards, so that
    the frozen weight drifts by rounding and is another parameter each time, dropout does nothing, and the update of
    ``out_proj`` counts twice (huggingface/peft, pull request 3774). Here the update is a branch beside the weight, with
    dropout, and ``out_proj`` keeps an update of zero, so that any version of PEFT computes the same from the saved
    folder.

    It stands in for attention of one sequence to itself, as vision transformers have it.
    """

    def _restore_weights(self) -> None:
        # PEFT makes the weights new parameters in each walk over the modules, since its merging unregisters them.
        pass

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return what attention makes of ``query`` (N, L, d), (L, N, d) if not batch first, and no weights.

        Args:
            query: the sequence.
            key: the same tensor.
            value: the same tensor.
            key_padding_mask: none.
            need_weights: ignored; attention weights are never returned.
            attn_mask: (L, L) or (N * heads, L, L); bool, true where attention is barred, or added to the scores.
            average_attn_weights: ignored.
            is_causal: a hint, for which ``attn_mask`` stands.

        Raises:
            SheetbendError: It is attention between two sequences, or with padding.
        """
        base = self.base_layer
        if query.ndim != 3 or key is not query or value is not query or key_padding_mask is not None:
            raise SheetbendError(
                "lora.target_modules reach a MultiheadAttention between two sequences or with padding; only one of a "
                "sequence to itself can be adapted: leave that layer out by longer names, such as resblocks.0.attn"
            )
        x = query if base.batch_first else query.transpose(0, 1)
        count, length, _ = x.shape
        stacked = self._project(x).view(count, length, 3, base.num_heads, base.head_dim)
        q, k, v = stacked.permute(2, 0, 3, 1, 4)
        mask = attn_mask
        if mask is not None:
            mask = ~mask if mask.ndim and not mask.is_floating_point() else mask.to(q.dtype)
            mask = mask.view(count, base.num_heads, length, length) if mask.ndim == 3 else mask
        dropout = base.dropout if self.training else 0.0
        heads = scaled_dot_product_attention(q, k, v, mask, dropout)
        out = base.out_proj.get_base_layer()(heads.transpose(1, 2).flatten(2))
        return (out if base.batch_first else out.transpose(0, 1)), None

    def _project(self, x: Tensor) -> Tensor:
        """Return query, key and value (N, L, 3 d)."""
        stacked = linear(x, self.base_layer.in_proj_weight, self.base_layer.in_proj_bias)
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
        for name in active:
            factor_a, factor_b = self.lora_A[name], self.lora_B[name]
            inner = factor_a(self.lora_dropout[name](x.to(factor_a.weight.dtype)))
            stacked = stacked + (factor_b(inner) * self.scaling[name]).to(stacked.dtype)
        return stacked


#: What PEFT is told to put in the place of which layer, by ``LoraConfig._register_custom_module``.
CUSTOM_MODULES: dict[type[nn.Module], type[nn.Module]] = {nn.MultiheadAttention: FusedAttention}
