"""Exported folders under old versions of transformers: what they load, what they compute, and the tokenizer's ids.

    python -m tests.old_transformers [FOLDER]

Every class of model is exported by `convert_weights.py --to hf`. pip installs each version into FOLDER (default: a
temporary one), without the packages that the project's own environment has, and a process of its own opens the folder
there. Exit status 1 if a key is missing, unexpected or of a wrong shape, or if a label, a number or an id differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data import Tokenizer, demo
from model import Encoder, QuestionAnswerer, SequenceClassifier, TokenClassifier, save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from tests.helpers import REPOSITORY

CLIENT = ("requests", "urllib3", "certifi", "charset_normalizer", "idna")  # of the huggingface_hub of those days
VERSIONS = {  # transformers -> what it needs in a version that today's environment does not have
    "4.30.2": ("tokenizers==0.13.3", "huggingface_hub==0.16.4", "protobuf==3.20.3", *CLIENT),
    "4.46.3": ("tokenizers==0.20.3", "huggingface_hub==0.26.5", *CLIENT),
    "4.57.6": ("tokenizers==0.22.1", "huggingface_hub==0.36.0", *CLIENT),
}
LABELS = ["neutre", "5 étoiles", "contradiction"]
TOLERANCE = 1e-5  # on hidden states and outputs in float64, from the same float32 weights
ALLOWED = {"CamembertModel": {"pooler.dense.weight", "pooler.dense.bias"}}  # missing: no task uses the pooler
TEXTS = [
    ("Le camembert est <mask> !",),
    ("J'aime l'été, « vraiment » : 3,5 étoiles…",),
    ("ÇA COÛTE 12 € À NOËL",),
    ("Il pleut.", "La rue est-elle mouillée ?"),
]


def models() -> dict:
    """The demo's teacher, its encoder, and its encoder with each other head, by transformers' name of the class."""
    teacher = load_checkpoint(demo.TEACHER)
    torch.manual_seed(0)
    result = [teacher, teacher.encoder, QuestionAnswerer(teacher.config)]
    result += [kind(teacher.config, len(LABELS), LABELS) for kind in (SequenceClassifier, TokenClassifier)]
    for model in result[2:]:
        model.encoder = teacher.encoder
        torch.nn.init.normal_(model.output.bias)  # zero as it is initialised, where a lost one would not be seen
    return {CLASSES[type(model).__name__]: model.eval() for model in result}


@torch.no_grad()
def export(folder: Path) -> None:
    """Writes each model as a folder for transformers, and beside it what this project computes."""
    tokenizer = Tokenizer(demo.FOLDER)
    ids = [tokenizer.encode(*text) for text in TEXTS]
    (folder / "ids.json").write_text(json.dumps(ids))
    longest = max(map(len, ids))
    input_ids = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in ids])
    for name, model in models().items():
        native = folder / "ours"  # not .safetensors, as the expected values are
        save_model(model, native, tokenizer=tokenizer)
        words = [sys.executable, "convert_weights.py", native, folder / name, "--to", "hf"]
        subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        model.double()
        encoder = model if isinstance(model, Encoder) else model.encoder
        states = {f"H_{layer}": state for layer, state in enumerate(encoder.hidden_states(input_ids))}
        save_file({"input_ids": input_ids, **states, "output": model(input_ids)}, folder / f"{name}.safetensors")
        model.float()  # the encoder is shared


@torch.no_grad()
def compare(folder: Path) -> bool:
    """Prints a line for each class and each tokenizer -> whether all is the same.

    Runs in a process with the old version on its path.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    rows = {path.stem: differences(path) for path in sorted(folder.glob("*.safetensors"))}
    wanted = json.loads((folder / "ids.json").read_text())
    for fast in (True, False):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "CamembertForMaskedLM", use_fast=fast)
        ids = [tokenizer(*text)["input_ids"] for text in TEXTS]
        rows[f"AutoTokenizer -> {type(tokenizer).__name__}"] = [
            f"other ids of {text[0]!r}" for text, one, other in zip(TEXTS, ids, wanted) if one != other
        ]
    for name, found in rows.items():
        print(f"{transformers.__version__:8} {name:42} {'; '.join(found) or 'the same'}", flush=True)
    return not any(rows.values())


def differences(path: Path) -> list[str]:
    """How an exported model is another one in transformers.

    path: the file of its expected values, beside the exported folder.
    """
    import transformers

    name, expected = path.stem, load_file(path)
    model, info = getattr(transformers, name).from_pretrained(path.with_suffix(""), output_loading_info=True)
    info["missing_keys"] = set(info["missing_keys"]) - ALLOWED.get(name, set())
    found = [f"{key} {sorted(map(str, keys))}" for key, keys in info.items() if keys]
    if "Classification" in name and [*model.config.id2label.values()] != LABELS:
        found.append(f"labels {model.config.id2label}")
    input_ids = expected.pop("input_ids")
    real = input_ids != Tokenizer.pad_id
    outputs = model.double().eval()(input_ids, attention_mask=real.long(), output_hidden_states=True)
    values = {f"H_{layer}": state for layer, state in enumerate(outputs.hidden_states)}
    if "start_logits" in outputs:
        values["output"] = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        values["output"] = outputs.get("logits", outputs.hidden_states[-1])
    assert values.keys() == expected.keys()
    for key, value in values.items():
        difference = (value - expected[key])[real if value.ndim == 3 else ...].abs().max().item()
        if not difference <= TOLERANCE:  # true for NaN
            found.append(f"{key} differs by {difference:.2e}")
    return found


def main(packages: Path, exported: Path) -> int:
    """-> exit status: 1 if an export is not read as it was written."""
    export(exported)
    code = "import pathlib, sys; from tests.old_transformers import compare; sys.exit(not compare(pathlib.Path({!r})))"
    words, statuses = [sys.executable, "-W", "ignore", "-c", code.format(str(exported))], []
    for version, needed in VERSIONS.items():
        place, partial = packages / version, packages / f"{version}.partial"
        if not place.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", partial]
            subprocess.run([*pip, f"transformers=={version}", *needed], check=True)
            partial.rename(place)
        settings = os.environ | {"PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
        statuses.append(subprocess.run(words, cwd=REPOSITORY, env=settings).returncode)
    return int(any(statuses))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as exported, tempfile.TemporaryDirectory() as packages:
        sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else packages).resolve(), Path(exported)))
