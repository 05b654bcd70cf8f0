"""YOLO detectors from ultralytics: closed vocabularies, YOLO-World and YOLOE. The extra ``countgen[yolo]``.

ultralytics, code and weights, is licensed under AGPL-3.0; see ``critics.detectors.yolo.library``. Its
networks are called as modules, never through its ``predict``, which blocks gradients.

A network with two branches (YOLOv10, YOLO26, YOLOE-26) is read by its one-to-one branch, trained to give
every object one box (arXiv 2405.14458); others give several boxes an object, and duplicates go by overlap.
As published: networks, letterboxing, thresholds. The hard count is the number of boxes of a class that the
library keeps at the same threshold: after its top-k selection, or after ``non_max_suppression`` with several
labels a box, as its validator calls it (its predictor keeps only the likeliest label of a box). The soft
count is a reconstruction; see ``critics.parts.readout``.

Sources: YOLO12 arXiv 2502.12524, YOLO-World arXiv 2401.17270, YOLOE arXiv 2503.07465.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from critics.base import CriticCard
from critics.detectors.base import DetectionCritic
from critics.detectors.yolo.detectors import ClosedYolo, OpenYolo
from critics.detectors.yolo.library import ultralytics_tasks
from critics.detectors.yolo.models import check_gradient, read_model
from critics.detectors.yolo.network import YoloNetwork
from critics.detectors.yolo.text import load_text_encoder
from critics.loading.settings import global_settings_kept
from critics.parts.readout import ReadOut
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
            "YOLO11, YOLO12, YOLO26 and their relatives, COCO's 80 nouns; a file of yours, extra yolo",
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

READ_OUT = ReadOut(threshold=0.25, overlap=0.7, limit=512)
"""ultralytics' own threshold and overlap; None is the overlap of models with a branch that gives every object
one box. Many boxes take part, since an object may bring ten."""


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    text: str | Path | None = None,
    side: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
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
        revision, local_files_only: of the text encoder on the hub.
        dtype: of the weights; counts and boxes are float32 in any case.
        settings: of the read-out, in place of those in ``READ_OUT``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: no ultralytics, or one that blocks the gradient; a pickle without consent; files that
            are missing, damaged or of another model.
        ValueError: a side that is no multiple of the stride.
    """
    READ_OUT.changed(**settings)  # before anything is read
    tasks = ultralytics_tasks()
    model, names, trained = read_model(tasks, name, source, allow_pickle)
    tokenizer = None
    network = YoloNetwork(model)
    if name != "yolo":
        hub: dict[str, Any] = {"local_files_only": local_files_only}
        if revision:
            hub["revision"] = revision
        encoder, tokenizer = load_text_encoder(name, text, network.width, hub)
        keyword = {"yolo-world": "txt_feats", "yoloe": "tpe"}[name]
        network = YoloNetwork(model, encoder, keyword)
    network.eval().requires_grad_(False).to(dtype)
    side = trained if side is None else side
    if side <= 0 or side % network.stride:
        raise ValueError(f"side must be a multiple of {network.stride} pixels, not {side}")
    check_gradient(network)
    detector: ClosedYolo | OpenYolo
    if name == "yolo":
        detector = ClosedYolo(network, Vocabulary.from_labels(dict(enumerate(names))), side)
    else:
        detector = OpenYolo(network, tokenizer, side)
    card = CARDS[name].of(
        network,
        vocabulary=detector.vocabulary.names if isinstance(detector, ClosedYolo) else None,
        input_size=side,
    )
    default = READ_OUT.changed(overlap=None) if network.single else READ_OUT
    return DetectionCritic(detector, card, default.changed(**settings))
