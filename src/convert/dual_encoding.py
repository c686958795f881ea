"""Checkpoints and vocabularies of Dual Encoding: their names and layouts and ours, both ways.

A published checkpoint holds the list `model` of state dicts, which `src.models.weights` reads as `0.…`, `1.…`, and
so on: of hybrid_space (TPAMI'21) four, of dual_encoding (CVPR'19) two, with the mappings inside the encoders.

Source: danieljf24/hybrid_space @ b934eff, danieljf24/dual_encoding @ c0aaf60.
"""

from __future__ import annotations

import io
import json
import pickle
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError
from src.models.vocabulary import SPECIAL

PARTS = ("vid_encoding", "text_encoding", "vid_mapping", "text_mapping")
"""Names of the dicts, in the order of the list."""

# (reference, ours). The embedding stands among the text encoder's tensors there, and the first match counts.
_ENCODERS = (
    ("text_encoding.embed.", "words."),
    ("vid_encoding.rnn.", "video_encoder.gru."),
    ("vid_encoding.convs1.", "video_encoder.windows."),
    ("text_encoding.rnn.", "text_encoder.gru."),
    ("text_encoding.convs1.", "text_encoder.windows."),
)
HYBRID = (
    *_ENCODERS,
    ("vid_mapping.mapping.fc1.", "video_spaces.latent.linear."),
    ("vid_mapping.mapping.bn_1.", "video_spaces.latent.norm."),
    ("vid_mapping.tag_fc.", "video_spaces.concepts.linear."),
    ("vid_mapping.tag_fc_batch_norm.", "video_spaces.concepts.norm."),
    ("text_mapping.mapping.fc1.", "text_spaces.latent.linear."),
    ("text_mapping.mapping.bn_1.", "text_spaces.latent.norm."),
    ("text_mapping.tag_fc.", "text_spaces.concepts.linear."),
    ("text_mapping.tag_fc_batch_norm.", "text_spaces.concepts.norm."),
)
CONFERENCE = (
    *_ENCODERS,
    ("vid_encoding.visual_mapping.fc1.", "video_spaces.latent.linear."),
    ("vid_encoding.visual_mapping.bn_1.", "video_spaces.latent.norm."),
    ("text_encoding.text_mapping.fc1.", "text_spaces.latent.linear."),
    ("text_encoding.text_mapping.bn_1.", "text_spaces.latent.norm."),
)
SHARED_OPTIONS = (
    *("space", "concate", "gru_pool", "dropout", "measure", "measure_2", "margin", "margin_2", "max_violation"),
    *("cost_style", "direction", "word_dim", "text_rnn_size", "text_kernel_num", "text_kernel_sizes"),
    *("visual_rnn_size", "visual_kernel_num", "visual_kernel_sizes"),
)
"""Options that have the same name and meaning in both."""
COUNTER = "num_batches_tracked"
_PROGRESS = ("epoch", "best_rsum", "Eiters")
_NOT_2019 = ("space", "gru_pool", "measure_2", "margin_2", "tag_vocab_size")
OURS = tuple(sorted({ours.split(".")[0] + "." for _, ours in HYBRID}))


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a published checkpoint."""
    return any(name.startswith(("0.rnn.", "vid_encoding.")) for name in state)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a `DualEncoding`."""
    return bool(state) and all(name.startswith(OURS) for name in state)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors (`0.rnn.…` or `vid_encoding.rnn.…`) under our names.

    Files of PyTorch 0.3 have no `num_batches_tracked`; with a fixed momentum nothing reads it: 0 is set.

    Raises:
        UserError: lists the tensors that belong to neither publication.
    """
    converted, foreign = {}, []
    for name, value in state.items():
        number, _, rest = name.partition(".")
        named = f"{PARTS[int(number)]}.{rest}" if number.isdigit() and int(number) < len(PARTS) else name
        ours = _rename(named, (*HYBRID, *CONFERENCE))
        if ours is None:
            foreign.append(name)
        else:
            converted[ours] = value
    if foreign:
        listing = ", ".join(sorted(foreign)[:12]) + (f", … ({len(foreign) - 12} more)" if len(foreign) > 12 else "")
        raise UserError(
            f"{len(foreign)} of {len(state)} tensors do not belong to Dual Encoding: {listing}; expected a model_best."
            "pth.tar of hybrid_space or dual_encoding"
        )
    for name in [name for name in converted if name.endswith(".norm.running_mean")]:
        counter = name.removesuffix("running_mean") + COUNTER
        converted.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return converted


def to_upstream(state: Mapping[str, Tensor], conference: bool = False) -> dict[str, Tensor]:
    """Our tensors as `<part>.<key>`; the inverse of `from_upstream`.

    Args:
        state: tensors of a `DualEncoding`.
        conference: names of CVPR'19, which has no concept space.

    Raises:
        UserError: a tensor that has no name there.
    """
    table = tuple((ours, upstream) for upstream, ours in (CONFERENCE if conference else HYBRID))
    converted = {}
    for name, value in state.items():
        upstream = _rename(name, table)
        if upstream is None:
            raise UserError(f"tensor {name} has no name in Dual Encoding; export a latent or hybrid model")
        converted[upstream] = value
    return converted


def published_layout(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The list of dicts that a published file holds under `model`, from tensors named `<part>.<key>`."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
    for name, value in state.items():
        part, _, key = name.partition(".")
        parts[part][key] = value
    return [tensors for tensors in parts.values() if tensors]


def extras(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """What a published file says beside its tensors, as plain values.

    Args:
        state: its tensors, as they are named there.
        rest: its other entries.
    """
    opt = rest.get("opt")
    options = vars(opt) if isinstance(opt, Namespace) else opt if isinstance(opt, Mapping) else {}
    numbers = {name: rest[name] for name in _PROGRESS if isinstance(rest.get(name), int | float)}
    return {
        **numbers,
        "opt": {str(name): value for name, value in options.items() if _is_plain(value)},
        "conference": _is_conference(state),
        "counters": any(name.endswith(COUNTER) for name in state),
    }


def options_told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `DualEncoding` that change what it computes and that no tensor tells."""
    opt = found.get("opt", {})
    hybrid = opt.get("space", "latent") == "hybrid"
    names = ("gru_pool", "measure", *(("measure_2",) if hybrid else ()))
    return {name: opt[name] for name in names if name in opt}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_conference(state: Mapping[str, Tensor]) -> bool:
    return any(name.split(".")[1] in ("visual_mapping", "text_mapping") for name in state if name.count("."))


def file_content(
    state: Mapping[str, Tensor], options: Mapping[str, Any], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a published file holds.

    Args:
        state: tensors named as `to_upstream` does.
        options: of `DualEncoding`; they become `opt`, under the reference's names, with the sizes that its programs
            expect there. What a run of theirs adds (folders, names of collections and features) is not known here.
        found: `extras` of the published file from which the tensors came: it is written again as it was, unless the
            other publication's layout is asked for.
    """
    conference = _is_conference(state)
    if not found or not found["opt"] or found["conference"] != conference:
        found = {"opt": _opt(state, options, conference), "counters": True}
    if not found["counters"]:
        state = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    return {
        "epoch": found.get("epoch", 0),
        "model": published_layout(state),
        "best_rsum": found.get("best_rsum", 0.0),
        "opt": Namespace(**found["opt"]),
        "Eiters": found.get("Eiters", 0),
    }


def _opt(state: Mapping[str, Tensor], options: Mapping[str, Any], conference: bool) -> dict[str, Any]:
    ours = from_upstream(state)
    sizes = options_of(ours)
    spaces = {side: f"{side}_spaces.latent.linear.weight" for side in ("text", "video")}
    mapped = {side: [ours[name].shape[1], ours[name].shape[0]] for side, name in spaces.items() if name in ours}
    opt: dict[str, Any] = {name: options[name] for name in SHARED_OPTIONS if name in options}
    opt |= {
        **{name: value for name, value in sizes.items() if name in SHARED_OPTIONS},
        "model": f"dual_encoding_{sizes['space']}",
        "text_mapping_layers": mapped.get("text"),
        "visual_mapping_layers": mapped.get("video"),
        "visual_feat_dim": sizes["frame_dim"],
        "bow_vocab_size": sizes["words"],
        "vocab_size": sizes["words"] + len(SPECIAL),
        "tag_vocab_size": options.get("num_concepts"),
        "text_norm": True,
        "visual_norm": True,
        "loss_fun": "mrl",
        "we_parameter": None,
    }
    if not conference:
        return opt
    directions = {"t2v": "t2i", "v2t": "i2t"}
    opt |= {"model": "dual_encoding", "direction": directions.get(opt.get("direction", "all"), "all")}
    return {name: value for name, value in opt.items() if name not in _NOT_2019}


def options_of(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `DualEncoding` that its tensors tell, and `words` and `frame_dim`, which other files set.

    Raises:
        UserError: tensors of which every such model has some are missing.
    """
    needed = [f"{side}_encoder.gru.weight_{kind}_l0" for side in ("text", "video") for kind in ("ih", "hh")]
    lacking = [name for name in (*needed, "words.weight") if name not in ours]
    if lacking or not any(name.startswith("video_spaces.") for name in ours):
        raise UserError(
            f"the weights lack {', '.join(lacking) or 'video_spaces'}, expected a whole Dual Encoding; fetch the file "
            "again"
        )
    text, video = _encoder_options(ours, "text", "text"), _encoder_options(ours, "video", "visual")
    frame_dim = ours["video_encoder.gru.weight_ih_l0"].shape[1]
    parts = [part for part in ("latent", "concepts") if f"video_spaces.{part}.linear.weight" in ours]
    mapped = ours[f"video_spaces.{parts[0]}.linear.weight"].shape[1] if parts else 0
    level23 = 2 * video["visual_rnn_size"] + video["visual_kernel_num"] * len(video["visual_kernel_sizes"])
    options = {
        "space": "hybrid" if len(parts) == 2 else {"latent": "latent", "concepts": "concept"}["".join(parts)],
        "concate": "full" if mapped == level23 + frame_dim else "reduced",
        **text,
        **video,
        "word_dim": ours["words.weight"].shape[1],
    }
    for part, name in (("latent", "embed_dim"), ("concepts", "num_concepts")):
        if part in parts:
            options[name] = len(ours[f"video_spaces.{part}.linear.bias"])
    return options | {"words": len(ours["words.weight"]) - len(SPECIAL), "frame_dim": frame_dim}


def _encoder_options(ours: Mapping[str, Tensor], side: str, option: str) -> dict[str, Any]:
    prefix = f"{side}_encoder.windows."
    shapes = {int(n.split(".")[2]): v.shape for n, v in ours.items() if n.startswith(prefix) and n.endswith("weight")}
    return {
        f"{option}_rnn_size": ours[f"{side}_encoder.gru.weight_hh_l0"].shape[1],
        f"{option}_kernel_num": shapes[0][0] if shapes else 0,
        f"{option}_kernel_sizes": [shapes[index][2] for index in sorted(shapes)],
    }


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in table:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


class _Vocabulary:
    """Stands in for the pickled class of the reference; only its attributes are read."""


class _VocabularyUnpickler(pickle.Unpickler):
    """Knows one class, under the names that it has when the reference's programs pickle it."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in (("__main__", "Vocabulary"), ("util.vocab", "Vocabulary"), ("vocab", "Vocabulary")):
            return _Vocabulary
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}")


# What a truncated or mangled stream makes the unpickler raise.
_DAMAGE = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, MemoryError)


def holds_vocabulary(path: Path) -> bool:
    """Whether a file is a published vocabulary: a pickle of one object of the class `Vocabulary`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"Vocabulary" in file.read(200)


def vocabulary_pickle(words: Sequence[str], style: str) -> bytes:
    """A published vocabulary: a pickle of `__main__.Vocabulary`, which the reference's programs find there.

    Args:
        words: without special words.
        style: "bow", or "rnn", which has the special words.
    """
    listed = [*(SPECIAL if style == "rnn" else ()), *words]
    ids = {word: index for index, word in enumerate(listed)}
    values = {"word2idx": ids, "idx2word": dict(enumerate(listed)), "idx": len(listed), "text_style": style}
    # No class of that name can be pickled from here: the object by hand, its attributes by the library.
    head, attributes = b"\x80\x02", pickle.dumps(values, protocol=2)
    return head + b"c__main__\nVocabulary\n)\x81" + attributes.removeprefix(head)[:-1] + b"b."


def read_vocabulary_words(path: Path) -> list[str]:
    """The words of a published vocabulary (`bow` or `rnn`), without special words, in the order of their ids.

    No trust in the file is needed: it may ask for nothing but the class `Vocabulary`, which holds plain values.

    Raises:
        UserError: the file is damaged, or something else.
    """
    try:
        content = _VocabularyUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
        ids = dict(vars(content)["word2idx"])
        words = sorted(ids, key=lambda word: ids[word])
    except _DAMAGE as error:
        raise UserError(
            f"{path} is no vocabulary of Dual Encoding ({error}), expected its word_vocab_5.pkl; fetch it again"
        ) from error
    special: Sequence[str] = SPECIAL if words[:1] == [SPECIAL[0]] else ()
    if [ids[word] for word in words] != list(range(len(words))) or tuple(words[: len(special)]) != tuple(special):
        raise UserError(f"{path} does not number its words from 0; expected the published word_vocab_5.pkl")
    return words[len(special) :]
