"""YOLO detectors from ultralytics: closed vocabularies, YOLO-World and YOLOE. The extra ``countgen[yolo]``.

ultralytics, code and weights, is licensed under AGPL-3.0. This file alone imports it, and only when a critic
is loaded or saved. Its networks are called as modules, never through its ``predict``, which blocks gradients.

A network with two branches (YOLOv10, YOLO26, YOLOE-26) is read by its one-to-one branch, trained to give
every object one box (arXiv 2405.14458); others give several boxes an object, and duplicates go by overlap.
As published: networks, letterboxing, thresholds. The hard count is the number of boxes of a class that the
library keeps at the same threshold: after its top-k selection, or after ``non_max_suppression`` with several
labels a box, as its validator calls it (its predictor keeps only the likeliest label of a box). The soft
count is a reconstruction; see ``critics.parts.readout``.

Sources: YOLO12 arXiv 2502.12524, YOLO-World arXiv 2401.17270, YOLOE arXiv 2503.07465.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, UnknownNounError, check_nouns, stack_classes
from critics.detectors.base import DetectionCritic
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError
from critics.loading.hub import load_model, load_part
from critics.parts.boxes import cell_boxes
from critics.parts.readout import STEEPNESS, Detections
from critics.parts.vocabulary import COCO, Vocabulary


def _card(
    name: str, summary: str, citation: str, text_license: str = "", **more: Any
) -> CriticCard:
    return CriticCard(
        name=name,
        family="yolo",
        summary=summary,
        license_code="AGPL-3.0",
        license_weights=f"AGPL-3.0{text_license}",
        input_size=640,
        citation=citation,
        **more,
    )


CARDS: dict[str, CriticCard] = {
    card.name: card
    for card in (
        _card(
            "yolo",
            "YOLO11, YOLO12, YOLO26 and their kin, COCO's 80 nouns; a file of yours, extra yolo",
            "Jocher et al., Ultralytics YOLO, https://github.com/ultralytics/ultralytics; YOLO12: Tian et "
            "al., arXiv 2502.12524",
            vocabulary=COCO,
            hub_id="Ultralytics/YOLO11",
        ),
        _card(
            "yolo-world",
            "YOLO-World, asked in words through CLIP ViT-B/32; a file of yours, extra yolo",
            "Cheng et al., YOLO-World: Real-Time Open-Vocabulary Object Detection, arXiv 2401.17270",
            "; text encoder: MIT",
        ),
        _card(
            "yoloe",
            "YOLOE, asked in words through MobileCLIP; a file of yours, extra yolo",
            "Wang et al., YOLOE: Real-Time Seeing Anything, arXiv 2503.07465",
            "; text encoder: Apple's terms",
            hub_id="jameslahm/yoloe",
        ),
    )
}
THRESHOLD, OVERLAP = 0.25, 0.7
"""Probability and intersection over union at which ultralytics itself keeps a box, unless told otherwise."""
PADDING = 114 / 255
TEXT_ENCODERS = {"yolo-world": "openai/clip-vit-base-patch32"}
"""What encodes the nouns, where it is on a hub in a form that ``transformers`` reads."""


@dataclass(frozen=True)
class Letterbox:
    """How a picture is put on the network's canvas, as ultralytics' ``LetterBox`` does for its predictor.

    The longer side becomes ``side``, whatever it was; grey (114 / 255) then pads both sides to multiples of
    the network's stride, half of it before the picture, rounded down. Bilinear without antialiasing, as in
    OpenCV.

    Attributes:
        size: height and width of the picture on the canvas.
        before: rows above it and columns to the left of it.
        canvas: height and width of the canvas.
    """

    size: tuple[int, int]
    before: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, side: int, stride: int) -> Letterbox:
        scale = min(side / height, side / width)
        sizes = [max(round(height * scale), 1), max(round(width * scale), 1)]
        pads = [(side - size) % stride for size in sizes]
        return cls(
            (sizes[0], sizes[1]),
            (pads[0] // 2, pads[1] // 2),
            (sizes[0] + pads[0], sizes[1] + pads[1]),
        )

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """The canvases, in float32."""
        images = images.float()
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        (top, left), (height, width) = self.before, self.size
        bottom, right = self.canvas[0] - height - top, self.canvas[1] - width - left
        return F.pad(images, (left, right, top, bottom), value=PADDING)

    def back(
        self, boxes: Float[Tensor, "b c 4"], images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c 4"]:
        """Boxes from pixels of the canvas to pixels of the images."""
        (top, left), (height, width) = self.before, self.size
        scale = boxes.new_tensor([images.shape[-1] / width, images.shape[-2] / height] * 2)
        return (boxes - boxes.new_tensor([left, top] * 2)) * scale


class YoloNetwork(nn.Module):
    """A model of ultralytics and, where it is asked in words, the text encoder that goes with it.

    Args:
        model: ``DetectionModel`` or one of its kin, in evaluation.
        text: ``CLIPTextModelWithProjection`` of ``transformers``; None for a closed vocabulary.
        keyword: by which the model takes text embeddings.
    """

    def __init__(self, model: Any, text: nn.Module | None = None, keyword: str = "") -> None:
        super().__init__()
        self.model, self.text, self.keyword = model, text, keyword
        # The head keeps the anchors of the last shape, and could not use those that it made in inference mode
        # for a gradient; "dynamic" has it make them anew.
        self.head.dynamic = True

    @property
    def head(self) -> Any:
        return self.model.model[-1]

    @property
    def stride(self) -> int:
        """What sides of a canvas are multiples of."""
        return int(self.model.stride.max())

    @property
    def single(self) -> bool:
        """Whether the model has a branch that gives every object one box."""
        return getattr(self.head, "one2one_cv2", None) is not None

    @property
    def width(self) -> int:
        """Length of the text embeddings that the head compares its cells with."""
        width: int = self.head.cv3[0][-1].out_channels
        return width

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], text: Float[Tensor, "b n d"] | None = None
    ) -> tuple[Float[Tensor, "b n a"], Float[Tensor, "b a 4"]]:
        """Logits of every class, or noun, with gradient, and the boxes in pixels of the canvas, without."""
        words = {}
        if text is not None:
            words[self.keyword] = text
            self.head.nc = text.shape[1]  # YOLO-World splits its output by it
        found = self.model(pixels, **words)[1]
        branch = found["one2one"] if self.single else found
        return branch["scores"], self._boxes(branch)

    @torch.no_grad()
    def _boxes(self, branch: Mapping[str, Any]) -> Tensor:
        """From distances to a cell's four sides, in cells, to corners in pixels of the canvas."""
        shapes = [tuple(features.shape[-2:]) for features in branch["feats"]]
        distances = self.head.dfl(branch["boxes"]).float()
        levels = distances.split([rows * columns for rows, columns in shapes], -1)
        strides = (int(stride) for stride in self.model.stride)
        corners = [
            cell_boxes(level.unflatten(-1, shape) * stride, stride).flatten(2)
            for level, shape, stride in zip(levels, shapes, strides, strict=True)
        ]
        return torch.cat(corners, -1).transpose(1, 2)


@dataclass
class ClosedYolo:
    """The family's part of a ``critics.detectors.base.DetectionCritic``: one output a class.

    Attributes:
        side: in pixels, of the canvas that pictures are letterboxed to.
    """

    network: YoloNetwork
    vocabulary: Vocabulary
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.vocabulary.prepare(nouns, "yolo")

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        classes, _ = stack_classes(queries, images.device)
        logits, boxes = _look(self.network, self.side, images)
        index = classes[..., None].expand(-1, -1, logits.shape[-1])
        return Detections(logits.gather(1, index).float(), boxes)


@dataclass
class OpenYolo:
    """The same for models that are asked in words.

    Attributes:
        tokenizer: CLIP's.
        side: in pixels, of the canvas that pictures are letterboxed to.
    """

    network: YoloNetwork
    tokenizer: Any
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode the nouns as they are; ``text["yolo"]`` is (n, d), of unit length.

        Raises:
            UnknownNounError: an empty noun, or one that is too long for the text encoder.
        """
        if not nouns:
            return Query((), text={"yolo": torch.zeros(0, self.network.width)})
        encoder: Any = self.network.text
        length = encoder.config.max_position_embeddings
        check_nouns(nouns)
        texts = [" ".join(noun.split()) for noun in nouns]
        tokens = self.tokenizer(texts, padding="max_length", max_length=length)
        for noun, ids in zip(nouns, tokens["input_ids"], strict=True):
            if len(ids) > length:
                raise UnknownNounError(
                    f"{noun!r} is too long: it has {len(ids)} tokens, but the text encoder reads {length}; "
                    "say it in fewer words"
                )
        # Tensors made in inference mode could never take part in a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            device = next(encoder.parameters()).device
            ids, attended = (
                torch.tensor(tokens[key], device=device) for key in ("input_ids", "attention_mask")
            )
            found = encoder(input_ids=ids, attention_mask=attended).text_embeds
            return Query(tuple(nouns), text={"yolo": F.normalize(found, dim=-1)})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Every cell is a candidate, for every noun.

        Raises:
            ValueError: a query that another critic prepared.
        """
        logits, boxes = _look(self.network, self.side, images, self._stack(queries, images.device))
        count = max((len(query.nouns) for query in queries), default=0)
        return Detections(logits[:, :count].float(), boxes)

    def _stack(self, queries: Sequence[Query], device: torch.device) -> Float[Tensor, "b k d"]:
        """The nouns' embeddings, at least one a query, padded to the longest query with its own first noun.

        YOLO-World's features look at the noun that fits each cell best: another noun, even one of zeros,
        would change them, and a repeated one does not.
        """
        count = max([1, *(len(query.nouns) for query in queries)])
        stacked = torch.zeros(len(queries), count, self.network.width, device=device)
        for row, query in zip(stacked, queries, strict=True):
            if "yolo" not in query.text or len(query.text["yolo"]) != len(query.nouns):
                raise ValueError(
                    f"the query for {', '.join(query.nouns) or 'no noun'} was prepared by another critic; "
                    "prepare the nouns with the critic that counts them"
                )
            if query.nouns:
                row[:] = query.text["yolo"][0]
                row[: len(query.nouns)] = query.text["yolo"]
        return stacked


def _look(
    network: YoloNetwork, side: int, images: Tensor, text: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and, in pixels of the images, boxes."""
    letterbox = Letterbox.of(images.shape[-2], images.shape[-1], side, network.stride)
    dtype = next(network.model.parameters()).dtype
    logits, boxes = network(letterbox(images).to(dtype), None if text is None else text.to(dtype))
    return logits, letterbox.back(boxes, images)


# -- loading ----------------------------------------------------------------------------------------


def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    text: str | Path | None = None,
    side: int | None = None,
    threshold: float = THRESHOLD,
    overlap: float | Literal["auto"] | None = "auto",
    limit: int = 512,
    steepness: float = STEEPNESS,
    duplicates: Literal["hard", "soft"] = "hard",
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> DetectionCritic:
    """A YOLO by name, from a file or folder of yours: none is fetched, since published ones are pickles.

    Args:
        source: folder that ``save_folder`` wrote, or a ``.pt`` file.
        allow_pickle: agree to read a ``.pt`` file; ultralytics' own restricted loader makes nothing of it but
            tensors and known parts of models.
        text: of YOLO-World and YOLOE, what encodes the nouns: hub id or folder of a
            ``CLIPTextModelWithProjection`` (or whole CLIP) with its tokenizer. CLIP ViT-B/32 for YOLO-World;
            for YOLOE, whose MobileCLIP ``transformers`` does not have, a folder from ``save_text_encoder``.
        side: that pictures are letterboxed to, a multiple of the model's stride; None: as in training.
        threshold: probability above which a box counts.
        overlap: intersection over union above which the weaker of two boxes is a duplicate; None counts all;
            "auto": None for models with a one-to-one branch, else 0.7 as in the library.
        limit: most boxes a noun that take part; many, since an object may bring ten.
        steepness: of the soft count, a logit.
        duplicates: how the soft count leaves them out; see ``critics.parts.readout.count_candidates``.
        revision, local_files_only: of the text encoder on the hub.
        dtype: of the weights; counts and boxes are float32 in any case.

    Raises:
        CheckpointError: no ultralytics, or one that blocks the gradient; a pickle without consent; files that
            are missing, damaged or of another model.
        ValueError: a side that is no multiple of the stride.
    """
    tasks = _ultralytics()
    model, names, trained = _model(tasks, name, source, allow_pickle)
    tokenizer = None
    network = YoloNetwork(model)
    if name != "yolo":
        hub: dict[str, Any] = {"local_files_only": local_files_only}
        if revision:
            hub["revision"] = revision
        encoder, tokenizer = _text_encoder(name, text, network.width, hub)
        keyword = {"yolo-world": "txt_feats", "yoloe": "tpe"}[name]
        network = YoloNetwork(model, encoder, keyword)
    network.eval().requires_grad_(False).to(dtype)
    side = trained if side is None else side
    if side <= 0 or side % network.stride:
        raise ValueError(f"side must be a multiple of {network.stride} pixels, not {side}")
    _check_gradient(network)
    detector: ClosedYolo | OpenYolo
    if name == "yolo":
        detector = ClosedYolo(network, Vocabulary.from_labels(dict(enumerate(names))), side)
    else:
        detector = OpenYolo(network, tokenizer, side)
    card = replace(
        CARDS[name],
        vocabulary=detector.vocabulary.names if isinstance(detector, ClosedYolo) else None,
        input_size=side,
        parameters=sum(weight.numel() for weight in network.parameters()),
    )
    if overlap == "auto":
        overlap = None if network.single else OVERLAP
    return DetectionCritic(detector, card, threshold, overlap, limit, steepness, duplicates)


def save_folder(model: Any, folder: str | Path, side: int = 640) -> None:
    """Write an ultralytics model so that ``load`` reads it: ``config.json`` and safetensors, no pickle.

    The weights keep their licence: those that ultralytics published or trained are under AGPL-3.0.

    Args:
        model: ``YOLO(...).model``, as trained: not fused, and with no vocabulary fixed in it.
        side: in pixels, of the pictures it was trained on.

    Raises:
        CheckpointError: no detection model, or one that was changed since it was built.
    """
    config, fresh = _rebuilt(_ultralytics(), model, type(model).__name__)
    checkpoint.save(Path(folder), config | {"kind": _KIND, "side": side}, fresh, half=False)


_KIND = "ultralytics"
_CURE = "Write the folder with critics.detectors.yolo.critic.save_folder, or name a .pt file of ultralytics."
_TESTED = (8, 4, 190)
_UPDATE = f"`pip install -U 'ultralytics>={'.'.join(map(str, _TESTED))}'`"
_DOWNLOADS = "https://github.com/ultralytics/assets/releases"
# Class of the last layer -> critic, and class of the model around it.
_HEADS = {
    "Detect": ("yolo", "DetectionModel"),
    "v10Detect": ("yolo", "DetectionModel"),
    "Segment": ("yolo", "SegmentationModel"),
    "Segment26": ("yolo", "SegmentationModel"),
    "WorldDetect": ("yolo-world", "WorldModel"),
    "YOLOEDetect": ("yoloe", "YOLOEModel"),
    "YOLOESegment": ("yoloe", "YOLOESegModel"),
    "YOLOESegment26": ("yoloe", "YOLOESegModel"),
}


def _ultralytics() -> Any:
    """The module of ultralytics that has the model classes."""
    try:
        from ultralytics.nn import tasks
    except ImportError as error:
        raise CheckpointError(
            "YOLO critics need ultralytics, the extra yolo, which is licensed under AGPL-3.0 and not part of "
            f'countgen: if you accept its terms, run `pip install "countgen[yolo]"` ({_line(error)})'
        ) from error
    return tasks


def _line(error: Exception) -> str:
    """What an error says, on one line of bearable length."""
    return " ".join(str(error).split())[:300]


def _version() -> str:
    from ultralytics import __version__

    return str(__version__)


def _model(
    tasks: Any, name: str, source: str | Path | None, allow_pickle: bool
) -> tuple[Any, list[str], int]:
    """Model, names of its classes, and side in pixels of the pictures that it was trained on."""
    if source is None:
        raise CheckpointError(
            f"{name} is fetched from nowhere, since its published weights are pickles: download a .pt file "
            f'from {_DOWNLOADS} and give its path, load_critic("{name}", "file.pt", allow_pickle=True), or a '
            "folder from critics.detectors.yolo.critic.save_folder"
        )
    source = Path(source)
    if source.is_dir():
        config = checkpoint.read_config(source, _KIND, _CURE)
        model = _build(tasks, config, source / "config.json")
        checkpoint.load_weights(source, model, _CURE)
        side = config.get("side")
    else:
        if source.suffix != ".pt" or not source.is_file():
            checkpoint.check_folder(source, _CURE)
        trained, side = _read_pickle(tasks, source, allow_pickle)
        config, model = _rebuilt(tasks, trained, str(source))
    if config["critic"] != name:
        raise CheckpointError(
            f'{source} holds a model for the critic "{config["critic"]}", not for "{name}"; load it by its '
            "own name"
        )
    return model, config["names"], side if isinstance(side, int) else 640


def _read_pickle(tasks: Any, path: Path, allowed: bool) -> tuple[Any, Any]:
    if not allowed:
        raise CheckpointError(
            f"{path} is a pickle, which could run code when read; if you trust where it comes from, pass "
            "allow_pickle=True (even then only known parts of models are made of it)"
        )
    if tuple(map(int, re.findall(r"\d+", _version())[:3])) < _TESTED:
        raise CheckpointError(
            f"ultralytics {_version()} may run code that it finds in {path}; run {_UPDATE}, or name a folder "
            "from critics.detectors.yolo.critic.save_folder"
        )
    try:
        found, _ = tasks.torch_safe_load(path, safe_only=True)
    except (
        TypeError,
        RuntimeError,
        ImportError,
        AssertionError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"ultralytics {_version()} cannot read {path} without running its code "
            f"({_line(error)}); download it again, or update ultralytics"
        ) from None
    model = found.get("ema") or found.get("model")
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{path} holds no model of ultralytics under 'ema' or 'model'")
    return model, (found.get("train_args") or {}).get("imgsz")


def _rebuilt(tasks: Any, model: Any, what: str) -> tuple[dict[str, Any], Any]:
    """A config, and a model that was built from it and filled with the weights of another.

    Of a model that others made, nothing but its plan, its names and its tensors is used.
    """
    plan, names = getattr(model, "yaml", None), getattr(model, "names", None)
    if not isinstance(plan, Mapping) or not isinstance(names, Mapping):
        raise CheckpointError(
            f"{what} is no model of ultralytics with a plan (.yaml) and names (.names); of a YOLO object "
            "take its .model"
        )
    try:
        pure = json.loads(json.dumps({k: v for k, v in plan.items() if k != "yaml_file"}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the plan of {what} holds more than words and numbers ({error})"
        ) from None
    config: dict[str, Any] = {
        "names": [str(names[key]) for key in sorted(names)],
        "model": pure,
    }
    fresh = _build(tasks, config, what)
    try:
        fresh.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {what} do not fit the plan that it names, since it was fused, or its vocabulary "
            f"fixed ({_line(error)}); take the model as it was trained"
        ) from None
    return config, fresh.eval().requires_grad_(False)


def _build(tasks: Any, config: dict[str, Any], what: str | Path) -> Any:
    """The model of a config, which then has the name of the critic it is for under "critic".

    Raises:
        CheckpointError: the config names what is no layer, or plans what cannot be built.
    """
    try:
        plan = deepcopy(config["model"])
        kinds = [str(kind) for _, _, kind, _ in [*plan["backbone"], *plan["head"]]]
        activation = str(plan.get("activation") or "nn.SiLU()")
        names, classes = [str(name) for name in config["names"]], int(plan["nc"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{what} lacks or misstates a field of a plan of layers ({error!r}). {_CURE}"
        ) from None
    # ultralytics looks these words up among all that it has imported, and calls or evaluates what it finds.
    strange = [kind for kind in kinds if not _is_layer(tasks, kind)]
    if not _ACTIVATION.fullmatch(activation):
        strange.append(activation)
    if strange:
        raise CheckpointError(
            f"{what} names what is no layer of ultralytics {_version()} or torch.nn: {', '.join(strange[:3])}"
        )
    if kinds[-1] not in _HEADS:
        raise CheckpointError(
            f"{what} ends in {kinds[-1]}, which finds no boxes that could be counted here; take a model for "
            "detection or segmentation (for RT-DETR there is the critic rt-detrv2)"
        )
    config["critic"], kind = _HEADS[kinds[-1]]
    try:
        model = getattr(tasks, kind)(plan, ch=3, nc=classes, verbose=False)
    except Exception as error:  # whatever a plan can make the many classes of layers raise
        raise CheckpointError(
            f"ultralytics {_version()} cannot build what {what} plans ({_line(error)})"
        ) from error
    model.names = dict(enumerate(names))
    return model.eval().requires_grad_(False)


_ARGUMENT = r"([a-z_]+=)?(True|False|-?[0-9][0-9.e-]*)"
_ACTIVATION = re.compile(rf"(torch\.)?nn\.[A-Za-z0-9]+\(({_ARGUMENT}(, ?{_ARGUMENT})*)?\)")


def _is_layer(tasks: Any, name: str) -> bool:
    own = name.startswith("nn.")
    found = getattr(nn, name[3:], None) if own else getattr(tasks, name, None)
    home = "torch.nn.modules." if own else "ultralytics.nn.modules."
    return (
        isinstance(found, type)
        and issubclass(found, nn.Module)
        and found.__module__.startswith(home)
        and name != "TorchVision"  # which fetches weights
    )


def _check_gradient(network: YoloNetwork) -> None:
    """Refuse a model that has no gradient to the picture in this version of ultralytics.

    Raises:
        CheckpointError: naming version and cure.
    """
    weights = next(network.model.parameters())
    side = 2 * network.stride
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(weights).requires_grad_()
    text = None
    if network.text is not None:
        text = weights.new_ones(1, 1, network.width) / network.width**0.5
    try:
        with torch.enable_grad():
            logits, _ = network(pixels, text)
            (slope,) = torch.autograd.grad(logits.float().sum(), pixels, allow_unused=True)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"ultralytics {_version()} answers in a form that is not known here ({error!r}); run {_UPDATE}"
        ) from error
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        slope = None
    if slope is None or not slope.isfinite().all() or not slope.any():
        branch = ", or take a model without a one-to-one branch, such as YOLO11" * network.single
        raise CheckpointError(
            f"ultralytics {_version()} blocks this model's gradient between its scores and the picture, so "
            f"that it cannot guide; run {_UPDATE}{branch}"
        )


# -- text -------------------------------------------------------------------------------------------


def _text_encoder(
    name: str, source: str | Path | None, width: int, hub: dict[str, Any]
) -> tuple[Any, Any]:
    """Text encoder and tokenizer.

    Raises:
        CheckpointError: none was named, or it does not fit the model.
    """
    import transformers

    place = str(source or TEXT_ENCODERS.get(name, ""))
    if not place:
        raise CheckpointError(
            f"{name} needs a text encoder, text=...: transformers has no MobileCLIP, but its text encoder is "
            "a plain CLIP one; write it with critics.detectors.yolo.save_text_encoder, and name that folder"
        )
    # A whole CLIP has these too.
    ignore = (r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$", r"position_ids$")
    cls = transformers.CLIPTextModelWithProjection
    encoder = load_model(cls, place, ignore=ignore, **hub)
    tokenizer = load_part(transformers.CLIPTokenizer, place, **hub)
    found, words = encoder.config.projection_dim, encoder.config.vocab_size
    if found != width:
        raise CheckpointError(
            f"the text encoder in {place} makes embeddings of {found} numbers, but the {name} model compares "
            f"{width}; take the encoder that it was trained with"
        )
    if len(tokenizer) != words:
        raise CheckpointError(
            f"the tokenizer in {place} has {len(tokenizer)} entries, but the text encoder {words}; take both "
            "from one checkpoint"
        )
    return encoder, tokenizer


def save_text_encoder(
    source: str | Path, folder: str | Path, tokenizer: str | Path = TEXT_ENCODERS["yolo-world"]
) -> None:
    """Write a folder for ``load(text=...)`` from an OpenCLIP file: MobileCLIP-B(LT)'s for YOLOE on v8 and 11.

    Its text encoder is CLIP's transformer with exact GELUs (MobileCLIP, arXiv 2311.17049). That of YOLOE-26,
    MobileCLIP2-B (arXiv 2508.20691), is read alike if it has the same layers; this is not verified.

    Args:
        source: safetensors file with OpenCLIP's names, such as that of apple/MobileCLIP-B-LT-OpenCLIP.
        tokenizer: CLIP's, by hub id or folder.

    Raises:
        CheckpointError: a file that is missing, damaged, or holds no such text encoder; no tokenizer.
    """
    import transformers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    words = load_part(transformers.CLIPTokenizer, tokenizer)
    try:
        state = load_file(source)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{source} is missing or damaged ({error})") from None
    state = {k.removeprefix("text."): v for k, v in state.items() if not k.startswith("visual.")}
    try:
        size, width = state["token_embedding.weight"].shape
        config = transformers.CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=len([k for k in state if k.endswith("attn.in_proj_weight")]),
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=len(state["positional_embedding"]),
            projection_dim=state["text_projection"].shape[1],
            hidden_act="gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        encoder = transformers.CLIPTextModelWithProjection(config)
        mapped = {new: value for key in state for new, value in _rename(key, state[key]).items()}
        encoder.load_state_dict({key: value.float() for key, value in mapped.items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} holds no text encoder of CLIP with OpenCLIP's names ({_line(error)})"
        ) from None
    encoder.save_pretrained(folder)
    words.save_pretrained(folder)


_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _rename(key: str, value: Tensor) -> dict[str, Tensor]:
    """One entry, by OpenCLIP's name, as ``transformers`` has it: queries, keys and values apart."""
    if key in ("logit_scale", "logit_bias", "attn_mask"):
        return {}
    if key == "text_projection":
        return {"text_projection.weight": value.T.contiguous()}
    block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", key)
    if not block:
        return {_OUTSIDE.get(key, key): value}
    index, part, kind = block.groups()
    stem = f"text_model.encoder.layers.{index}"
    if part == "attn.in_proj":
        thirds = zip("qkv", value.chunk(3), strict=True)
        return {f"{stem}.self_attn.{one}_proj.{kind}": third for one, third in thirds}
    return {f"{stem}.{_INSIDE.get(part, part)}.{kind}": value}
