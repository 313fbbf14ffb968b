"""The plain PyTorch decoder of the family: the reference, what is fine-tuned, and what is traced.

One class covers every checkpoint: 7B (pre-norm), 34B (norm after the branch, grouped K/V heads, q/k-norm
in groups) and all sizes between. Module names are those of the Hugging Face checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.export.config import DecoderConfig

    Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
    """(layer, q [B,W,heads,D], k and v [B,W,kv_heads,D]) -> y [B,W,heads,D]; applies the rotation."""


class Decoder(nn.Module):
    """Token ids to hidden states and logits.

    Args:
        config: dimensions and variant.
        norm_groups: rows of the q-norm and k-norm weights; `config.model_parallel_size` unless the
            checkpoint stores them already expanded to one row a head.
    """

    def __init__(self, config: DecoderConfig, norm_groups: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.config = config
        groups = norm_groups or (config.model_parallel_size, config.model_parallel_size)
        self.model = Transformer(config, groups)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] of whole sequences -> float32 logits [B, T, vocab], causal, without a cache."""
        return self.lm_head(self.hidden(tokens)).float()

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] of whole sequences -> normalised hidden states [B, T, hidden]."""
        return self.model(tokens, causal_attention(self.config, tokens.shape[1], tokens.device))

    def forward(self, tokens: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """One pass over new tokens of rows that each have a past of their own; this is what is traced.

        Args:
            tokens: int64 [B, W], row b continues after `lengths[b]` cached positions.
            lengths: int32 [B].
            cos: float32 [capacity, head_dim / 2].
            sin: the same.
            cache: K and V of each layer in turn, [B, kv_heads, capacity, head_dim]; updated in place.

        Returns:
            Normalised hidden states [B, W, hidden], then the cache.
        """
        updated = list(cache)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            past = slice(2 * layer, 2 * layer + 2)
            operands = (q, k, v, *updated[past], lengths, cos, sin)
            y, *updated[past] = (
                traced_attention(*operands) if torch.compiler.is_exporting() else cached_attention(*operands)
            )
            return y

        return (self.model(tokens, attend), *updated)


class Transformer(nn.Module):
    def __init__(self, config: DecoderConfig, norm_groups: tuple[int, int]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i, norm_groups) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens: Tensor, attend: Attend) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, attend)
        return self.norm(x)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, index: int, norm_groups: tuple[int, int]) -> None:
        super().__init__()
        self.self_attn = Attention(config, index, norm_groups)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.swin_norm = config.swin_norm
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        if self.swin_norm:
            x = x + self.dropout(self.input_layernorm(self.self_attn(x, attend)))
            return x + self.dropout(self.post_attention_layernorm(self.mlp(x)))
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), attend))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, index: int, norm_groups: tuple[int, int]) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = HeadNorm(norm_groups[0], config.num_heads, config.head_dim)
        self.k_norm = HeadNorm(norm_groups[1], config.num_kv_heads, config.head_dim)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return self.o_proj(attend(self.index, q, k, v).flatten(-2))


class HeadNorm(nn.Module):
    """LayerNorm over each head's dimensions; its affine rows serve heads / groups neighbouring heads each."""

    def __init__(self, groups: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.ones(groups, head_dim))
        self.bias = nn.Parameter(torch.zeros(groups, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        groups, head_dim = self.weight.shape
        if groups == 1:
            return F.layer_norm(x.float(), (head_dim,), self.weight[0].float(), self.bias[0].float(), 1e-5).to(x.dtype)
        weight, bias = (
            p.unsqueeze(1).expand(groups, self.heads // groups, head_dim).reshape(self.heads, head_dim)
            for p in (self.weight, self.bias)
        )
        return (F.layer_norm(x.float(), (head_dim,), None, None, 1e-5) * weight + bias).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) with statistics in float32, cast back before the weight is applied."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


def causal_attention(config: DecoderConfig, length: int, device: torch.device) -> Attend:
    """Attention of whole sequences of `length` tokens to themselves, without a cache."""
    tables = rotary_tables(length, config.head_dim, config.rope_theta)
    cos, sin = (torch.from_numpy(table).to(device) for table in tables)
    grouped = config.num_heads != config.num_kv_heads

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)

    return attend


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, W, heads, D] with tables [W, D/2] or [B, W, D/2], half-split layout."""
    half = x.shape[-1] // 2
    cos, sin = (table.unsqueeze(-2).to(x.dtype) for table in (cos, sin))
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Eager meaning of the traced operator: rotate, write K/V at `lengths`, attend to past and new tokens.

    Shapes: q [B,W,heads,D], k and v [B,W,kv_heads,D], caches [B,kv_heads,C,D], lengths [B], tables [C,D/2].
    """
    batch, width = q.shape[:2]
    positions = lengths.long().unsqueeze(1) + torch.arange(width)
    q, k = rotate(q, cos[positions], sin[positions]), rotate(k, cos[positions], sin[positions])
    rows = torch.arange(batch).unsqueeze(1)
    k_cache[rows, :, positions], v_cache[rows, :, positions] = k, v
    visible = torch.arange(k_cache.shape[2]) <= positions.unsqueeze(-1)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k_cache, v_cache, attn_mask=visible.unsqueeze(1), enable_gqa=q.shape[2] != k.shape[2]
    )
    return y.transpose(1, 2), k_cache, v_cache


def traced_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as one node of the ONNX graph, `mgpt.edge::CachedAttention`, for a lowering to replace."""
    y, k_new, v_new = torch.onnx.ops.symbolic_multi_out(
        "mgpt.edge::CachedAttention",
        (q, k, v, k_cache, v_cache, lengths, cos, sin),
        attrs={"num_heads": q.shape[2], "kv_num_heads": k.shape[2], "head_dim": q.shape[3]},
        dtypes=(q.dtype, k_cache.dtype, v_cache.dtype),
        shapes=(q.shape, k_cache.shape, v_cache.shape),
        version=1,
    )
    return y, k_new, v_new
