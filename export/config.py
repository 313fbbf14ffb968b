"""The transformer's dimensions, read from the `config.json` of a Hugging Face Chameleon checkpoint."""

from __future__ import annotations

import difflib
import math
import warnings
from dataclasses import dataclass
from typing import Any

from mgpt_edge.runtime.errors import CheckpointError, CompatibilityWarning

ARCHITECTURES = ("ChameleonForConditionalGeneration", "ChameleonXLLMXForConditionalGeneration")
MODEL_TYPES = ("chameleon",)

# Far above the largest checkpoint of the family; below what would make a loop or an allocation run away.
LARGEST = {"num_layers": 1024, "num_heads": 4096, "num_kv_heads": 4096, "model_parallel_size": 4096}
LARGEST_ELSE = 1 << 22

# Keys that change what the network computes, and the values under which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None, {"type": "default"}, {"rope_type": "default"}),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "logits_scaling": (1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "num_experts": (None,),
    "num_local_experts": (None,),
    "pruned_heads": (None, {}),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
}

ADVICE = {
    "quantization_config": (
        "the weights are packed by another library; export the unquantised checkpoint with --precision int8 or int4"
    ),
    "rope_scaling": "the family has plain rotary embeddings",
}

# Keys that say nothing about the arithmetic of inference, or that are read elsewhere.
# fmt: off
HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "_name_or_path", "auto_map", "_commit_hash",
    "name_or_path", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "rope_parameters",
    "model_parallel_size", "swin_norm", "dropout", "tie_word_embeddings", "torch_dtype", "dtype",
    "vocabulary_map", "vq_config", "image_token_id", "max_position_embeddings", "initializer_range",
    "use_cache", "attention_dropout", "z_loss_weight", "output_hidden_states", "output_attentions",
    "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "num_labels",
    "use_return_dict", "mask_image_logits", "use_bfloat16", "torchscript", "tf_legacy_loss", "_attn_implementation",
    "attn_implementation", "_attn_implementation_autoset", "pretraining_tp", "finetuning_task",
    "task_specific_params", "tie_encoder_decoder", "tokenizer_class", "prefix", "is_decoder",
})
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that fixes the decoder's arithmetic.

    Sizes are in elements. `swin_norm` normalises a branch's output instead of its input (34B).
    `model_parallel_size` is the number of rows of the stored q_norm and k_norm affines: each row serves
    `num_heads / model_parallel_size` heads. `dropout` matters to fine-tuning only.

    Raises:
        CheckpointError: a number is missing, out of range, or contradicts another.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    model_parallel_size: int = 1
    swin_norm: bool = False
    dropout: float = 0.0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "vocab_size", "model_parallel_size"):  # fmt: skip
            _check_int(name, getattr(self, name))
        for name in ("swin_norm", "tied_embeddings"):
            if not isinstance(getattr(self, name), bool):
                msg = f"config.json: {name} must be true or false, got {getattr(self, name)!r}"
                raise CheckpointError(msg)
        _check_number("norm_eps", self.norm_eps, above=0.0, below=1.0)
        _check_number("rope_theta", self.rope_theta, above=1.0, below=math.inf)
        _check_number("dropout", self.dropout, above=-math.ulp(0.0), below=1.0)
        self._check_consistency()

    def _check_consistency(self) -> None:
        if self.num_heads % self.num_kv_heads:
            msg = f"config.json: {self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly"
            raise CheckpointError(msg)
        if self.num_kv_heads % self.model_parallel_size:
            msg = (
                f"config.json: model_parallel_size {self.model_parallel_size} must divide {self.num_heads} heads and "
                f"{self.num_kv_heads} key/value heads"
            )
            raise CheckpointError(msg)
        if self.head_dim % 2:
            msg = f"config.json: head_dim {self.head_dim} must be even, rotary embeddings turn pairs"
            raise CheckpointError(msg)

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> DecoderConfig:
        """Reads a parsed `config.json`.

        Raises:
            CheckpointError: another architecture, a missing number, or a key whose value would change the
                arithmetic. Keys that are merely unknown are named in one `CompatibilityWarning`.
        """
        if not isinstance(config, dict):
            msg = f"config.json: expected an object, got {type(config).__name__}"
            raise CheckpointError(msg)
        _check_architecture(config)
        _check_neutral(config)
        _warn_unknown(config)
        _warn_masked(config)
        heads = _required(config, "num_attention_heads")
        hidden = _required(config, "hidden_size")
        kv_heads = config.get("num_key_value_heads")
        return cls(
            hidden_size=hidden,
            intermediate_size=_required(config, "intermediate_size"),
            num_layers=_required(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=_head_dim(config, hidden, heads),
            vocab_size=_required(config, "vocab_size"),
            norm_eps=config.get("rms_norm_eps", 1e-5),
            rope_theta=_rope_theta(config),
            model_parallel_size=_or(config.get("model_parallel_size"), 1),
            swin_norm=_or(config.get("swin_norm"), False),
            dropout=_or(config.get("dropout"), 0.0),
            tied_embeddings=_or(config.get("tie_word_embeddings"), False),
        )

    @property
    def parameters(self) -> int:
        """Number of weights, with q_norm and k_norm as stored (`model_parallel_size` rows)."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the decoder by its Hugging Face name, in the order it is used, as the family stores it."""
        wide, narrow = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        affine = (self.model_parallel_size, self.head_dim)
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden_size,),
            "self_attn.q_proj.weight": (wide, self.hidden_size),
            "self_attn.k_proj.weight": (narrow, self.hidden_size),
            "self_attn.v_proj.weight": (narrow, self.hidden_size),
            "self_attn.q_norm.weight": affine,
            "self_attn.q_norm.bias": affine,
            "self_attn.k_norm.weight": affine,
            "self_attn.k_norm.bias": affine,
            "self_attn.o_proj.weight": (self.hidden_size, wide),
            "post_attention_layernorm.weight": (self.hidden_size,),
            "mlp.gate_proj.weight": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj.weight": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj.weight": (self.hidden_size, self.intermediate_size),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for index in range(self.num_layers):
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes


def _check_architecture(config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    for found, known, key in [
        *((name, ARCHITECTURES, "architectures") for name in names),
        (config.get("model_type", MODEL_TYPES[0]), MODEL_TYPES, "model_type"),
    ]:
        if found not in known:
            # Of a wholly different name the nearest is still the useful answer: what this package does read.
            nearest = (difflib.get_close_matches(str(found), known, n=1, cutoff=0.0) or known)[0]
            msg = f"config.json: {key} is {found!r}, unknown to this package; the nearest it reads is {nearest!r}"
            raise CheckpointError(msg)


def _check_neutral(config: dict[str, Any]) -> None:
    for key, neutral in NEUTRAL.items():
        if key not in config:
            continue
        value = config[key]
        # bool before ==, because 1 == True and 0 == False would let numbers pass for switches.
        if not any(value == ok and isinstance(value, bool) == isinstance(ok, bool) for ok in neutral):
            shown = (
                value.get("quant_method", value) if key == "quantization_config" and isinstance(value, dict) else value
            )
            msg = f"config.json: {key} is {shown!r}, expected {neutral[0]!r}: it would change the results"
            raise CheckpointError(f"{msg}; {ADVICE[key]}" if key in ADVICE else msg)


def _warn_unknown(config: dict[str, Any]) -> None:
    unknown = [
        key for key in config if key not in HARMLESS and key not in NEUTRAL and not key.endswith("_token_id")
    ]  # fmt: skip
    if unknown:
        msg = f"config.json: ignored keys this package does not know: {', '.join(sorted(unknown))}"
        warnings.warn(msg, CompatibilityWarning, stacklevel=3)


def _warn_masked(config: dict[str, Any]) -> None:
    if config.get("mask_image_logits"):
        msg = (
            "config.json: mask_image_logits is true: this checkpoint was published to read pictures and to write text; "
            "what it draws without the mask, as it is run here, means little before it is fine-tuned"
        )
        warnings.warn(msg, CompatibilityWarning, stacklevel=3)


def _rope_theta(config: dict[str, Any]) -> float:
    """The rotary base, from `rope_theta` or from `rope_parameters` (transformers 5)."""
    parameters = config.get("rope_parameters")
    if parameters is None:
        return _or(config.get("rope_theta"), 10000.0)
    kind = parameters.get("rope_type", "default") if isinstance(parameters, dict) else parameters
    rest = set(parameters) - {"rope_theta", "rope_type"} if isinstance(parameters, dict) else set()
    if kind != "default" or rest:
        msg = f"config.json: rope_parameters are {parameters!r}, expected rope_type 'default' and a rope_theta alone"
        raise CheckpointError(msg)
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    if config.get("rope_theta", theta) != theta:
        msg = f"config.json: rope_theta is {config['rope_theta']!r} but rope_parameters say {theta!r}"
        raise CheckpointError(msg)
    return theta


def _head_dim(config: dict[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    _check_int("hidden_size", hidden)
    _check_int("num_heads", heads)
    if hidden % heads:
        msg = f"config.json: hidden_size {hidden} is not a multiple of {heads} heads, and head_dim is not given"
        raise CheckpointError(msg)
    return hidden // heads


def _required(config: dict[str, Any], key: str) -> int:
    if config.get(key) is None:
        near = difflib.get_close_matches(key, config, n=1)
        hint = f" (there is {near[0]!r})" if near else ""
        msg = f"config.json: {key} is missing{hint}"
        raise CheckpointError(msg)
    return config[key]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_int(name: str, value: object) -> None:
    largest = LARGEST.get(name, LARGEST_ELSE)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        msg = f"config.json: {name} must be a whole number from 1 to {largest}, got {value!r}"
        raise CheckpointError(msg)


def _check_number(name: str, value: object, *, above: float, below: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < below:
        msg = f"config.json: {name} must be a finite number from {max(above, 0.0):g} to {below:g}, got {value!r}"
        raise CheckpointError(msg)
