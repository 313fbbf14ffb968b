"""The weights of the VQ model, under Meta's names, wherever a checkpoint keeps them."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import yaml

from mgpt_edge.export.shards import Shards
from mgpt_edge.export.vqgan import CHAMELEON, MOVQGAN_270M, VQGAN, VQConfig
from mgpt_edge.runtime.errors import CheckpointError, CompatibilityWarning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAFETENSORS, CKPT, YAML = "vqgan.safetensors", "vqgan.ckpt", "vqgan.yaml"
MOVQGAN = "movqgan_270M"
"""Stem of the file that Lumina-mGPT 2.0 draws with; it is given out without its yaml."""
INSIDE = "model.vqmodel."

# Training leaves these beside the network: perceptual loss, discriminator, running averages.
TRAINING_ONLY = re.compile(r"(loss|discriminator|perceptual\w*|model_ema|ema_\w+|lpips)\.")
# What only drawing needs.
DRAWING = re.compile(r"(decoder|post_quant_conv)\.")

HELP = (
    f"put {SAFETENSORS} (or Meta's {CKPT}) and {YAML} beside config.json, or name their folder with --vq; they come "
    f"with Meta's Chameleon release, Lumina-mGPT 2.0's {MOVQGAN}.ckpt with ai-forever/MoVQGAN: see docs/checkpoints.md"
)


@dataclass(frozen=True, slots=True)
class VQFiles:
    """The VQ model's tensors: `shapes` by Meta's name, and `load` to read one of them."""

    config: VQConfig
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[str], torch.Tensor]

    @classmethod
    def find(cls, folder: Path, vq: Path | None, shards: Shards, hf_config: dict[str, Any] | None) -> VQFiles | None:
        """Looks at `vq`, then beside the checkpoint, then inside it.

        Args:
            folder: the checkpoint's folder.
            vq: a folder, or a file of weights with its yaml beside it; None where the user named none.
            shards: the checkpoint's tensors, which may hold the encoder as `model.vqmodel.*`.
            hf_config: `vq_config` of config.json, which describes that encoder.

        Returns:
            None if there are no VQ weights at all.

        Raises:
            CheckpointError: `vq` has no such files, a file is damaged, or it is a pickle with more than tensors.
        """
        weights = _weights_at(folder if vq is None else vq)
        if weights is not None:
            return cls._open(weights)
        if vq is not None:
            msg = f"{vq}: none of {SAFETENSORS}, {CKPT} and {MOVQGAN}.ckpt is here; {HELP}"
            raise CheckpointError(msg)
        return cls._inside(shards, hf_config or {})

    @classmethod
    def _open(cls, weights: Path) -> VQFiles:
        yaml_path = weights.with_name(YAML)
        published = weights.stem == MOVQGAN and not yaml_path.exists()
        config = MOVQGAN_270M if published else _config(_read_yaml(yaml_path), yaml_path)
        if weights.suffix == ".ckpt":
            state = _read_ckpt(weights)
            shapes, load = {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__
        else:
            shards = Shards.open_file(weights)
            shapes, load = {name: entry.shape for name, entry in shards.entries.items()}, shards.tensor
        files = (weights,) if published else (weights, yaml_path)
        return cls(config, files, _checked(shapes, config, weights), load)

    @classmethod
    def _inside(cls, shards: Shards, hf_config: dict[str, Any]) -> VQFiles | None:
        # transformers kept Meta's names below the prefix, the encoder's attention and shortcuts included.
        shapes = {
            name.removeprefix(INSIDE): entry.shape for name, entry in shards.entries.items() if name.startswith(INSIDE)
        }
        if not shapes:
            return None
        config = _config(yaml_of(hf_config), "config.json: vq_config")
        found = cls(config, (), _checked(shapes, config, INSIDE + "*"), lambda name: shards.tensor(INSIDE + name))
        if not found.has_decoder:
            msg = f"the checkpoint holds the VQ encoder only: it can read pictures but not draw them; to draw, {HELP}"
            warnings.warn(msg, CompatibilityWarning, stacklevel=4)
        return found

    @property
    def has_decoder(self) -> bool:
        """Whether pictures can be drawn; the encoder alone can only read them."""
        return any(name.startswith("decoder.") for name in self.shapes)


def yaml_of(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Meta's yaml for a Hugging Face `vq_config`; a key it leaves out has transformers' default."""
    if not isinstance(hf_config, dict):
        msg = f"config.json: vq_config should be an object, got {hf_config!r}"
        raise CheckpointError(msg)
    if hf_config.get("attn_type", "vanilla") != "vanilla":
        msg = f"config.json: vq_config.attn_type is {hf_config['attn_type']!r}, expected 'vanilla'"
        raise CheckpointError(msg)
    ddconfig = {
        "double_z": hf_config.get("double_latent", False),
        "z_channels": hf_config.get("latent_channels", 256),
        "resolution": hf_config.get("resolution", 512),
        "in_channels": hf_config.get("in_channels", 3),
        "out_ch": 3,
        "ch": hf_config.get("base_channels", 128),
        "ch_mult": hf_config.get("channel_multiplier", [1, 1, 2, 2, 4]),
        "num_res_blocks": hf_config.get("num_res_blocks", 2),
        "attn_resolutions": hf_config.get("attn_resolutions") or [],
        "dropout": hf_config.get("dropout", 0.0),
    }
    embed_dim, codes = hf_config.get("embed_dim", 256), hf_config.get("num_embeddings", 8192)
    return {"model": {"params": {"embed_dim": embed_dim, "n_embed": codes, "ddconfig": ddconfig}}}


def usual_config(codes: int) -> VQConfig:
    """Of the family's VQ model with so many codes, where its files are not at hand."""
    return MOVQGAN_270M if codes == MOVQGAN_270M.codes else CHAMELEON


def _weights_at(place: Path) -> Path | None:
    names = (SAFETENSORS, CKPT, f"{MOVQGAN}.safetensors", f"{MOVQGAN}.ckpt")
    candidates = [place / name for name in names] if place.is_dir() else [place]
    return next((path for path in candidates if path.is_file() and path.suffix in {".safetensors", ".ckpt"}), None)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"{path}: the VQ weights need this file beside them, and it cannot be read: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, dict):
        msg = f"{path}: expected a mapping with model.params, got {type(value).__name__}"
        raise CheckpointError(msg)
    return value


def _read_ckpt(path: Path) -> dict[str, torch.Tensor]:
    """Opens a torch checkpoint without running anything in it: tensors and plain containers only.

    torch.load's restricted unpickler (weights_only) refuses every class that is not on its own list. Its tensors
    stay in the file until they are used, unless the file is of torch's format from before 1.6.
    """
    try:
        loaded = _load_weights_only(path)
    except UnpicklingError as error:
        raise CheckpointError(_foreign_class(path, str(error))) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        msg = f"{path}: not a torch checkpoint, or damaged: {error}"
        raise CheckpointError(msg) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        msg = f"{path}: expected a state_dict of tensors, got {type(loaded).__name__}"
        raise CheckpointError(msg)
    return tensors


def _load_weights_only(path: Path) -> Any:
    with warnings.catch_warnings():
        # torch warns of pickle protocols it did not write itself; what it cannot read raises all the same.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _foreign_class(path: Path, error: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)|class ([\w.]+)", error)
    name = next((group for group in found.groups() if group), "a class") if found else "more than tensors"
    return (
        f"{path}: this pickle holds {name}, and opening it would run code from the file, so it is refused. If you "
        f"trust the file, convert it once in the environment it came from:\n"
        '  python -c "import torch; from safetensors.torch import save_file; '
        f"s = torch.load('{path.name}', map_location='cpu', weights_only=False); s = s.get('state_dict', s); "
        "save_file({k: v.contiguous() for k, v in s.items() if not k.startswith('loss.')}, "
        f"'{path.stem}.safetensors')\"\nthen keep {path.stem}.safetensors in its place and move {path.name} away"
    )


def _checked(shapes: dict[str, tuple[int, ...]], config: VQConfig, source: Path | str) -> dict[str, tuple[int, ...]]:
    """The network's own tensors, all there and of the right shape; the decoder may be absent as a whole."""
    expected = vq_shapes(config)
    kept = {name: shape for name, shape in shapes.items() if name in expected}
    strange = sorted(name for name in shapes if name not in expected and not TRAINING_ONLY.match(name))
    if strange:
        msg = f"{source}: ignored {len(strange)} tensors of unknown use, the first are {', '.join(strange[:3])}"
        warnings.warn(msg, CompatibilityWarning, stacklevel=5)
    drawing = any(name.startswith("decoder.") for name in kept)
    missing = [name for name in expected if name not in kept and (drawing or not DRAWING.match(name))]
    if missing:
        msg = f"{source}: {len(missing)} tensors of the VQ model are missing, the first are {', '.join(missing[:3])}"
        raise CheckpointError(msg)
    for name, shape in kept.items():
        if shape != expected[name]:
            msg = f"{source}: {name} should have the shape {list(expected[name])} by its yaml, got {list(shape)}"
            raise CheckpointError(msg)
    return kept


def vq_shapes(config: VQConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the VQ model by Meta's name."""
    with torch.device("meta"):  # shapes alone, nothing is allocated
        return {name: tuple(tensor.shape) for name, tensor in VQGAN(config).state_dict().items()}


def _config(document: dict[str, Any], source: Path | str) -> VQConfig:
    try:
        return VQConfig.from_yaml(document)
    except ValueError as error:
        msg = f"{source}: {error}"
        raise CheckpointError(msg) from error
