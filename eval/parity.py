"""Compares a converted model with transformers': every hidden state and the output, on fixed sentences."""

from pathlib import Path

import torch
from torch import Tensor, nn

from data import OptionError, Tokenizer
from model import Encoder, EncoderConfig
from model.checkpoints.load import find_tokenizer, load_checkpoint
from model.checkpoints.names import CLASSES, CONFIG_KEYS

SENTENCES = (
    "Le camembert est délicieux !",
    "J'aime le camembert.",
    "À l'instar des réseaux de neurones récurrents, les transformeurs sont conçus pour gérer des données "
    "séquentielles.",
)
# on states in float64, by the dtype of the file, in which the token-type row was added
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}


def compare(source: str | Path, folder: str | Path) -> int:
    """Prints the largest difference in every hidden state and in the output -> exit status, 1 above the tolerance.

    source: anything that load_checkpoint takes; folder: the same model for transformers.
    Raises ModelError, DataError, OptionError if either cannot be read.
    """
    ours = load_checkpoint(source)
    tokenizer = find_tokenizer(Path(folder)) or find_tokenizer(Path(source))
    tolerance = TOLERANCES[next(ours.parameters()).dtype]
    ours, theirs = ours.double(), transformers_model(Path(folder), type(ours))
    check_sizes(ours, theirs, source, folder)
    differences = largest_differences(ours, theirs, token_ids(ours.config, tokenizer))
    worst = max(differences.values())
    for name, difference in differences.items():
        print(f"{name:12} {difference:.2e}")
    same = all(difference <= tolerance for difference in differences.values())  # false for NaN
    verdict = "the same as" if same else "NOT THE SAME AS"
    print(f"{type(ours).__name__}: {verdict} in transformers (largest difference {worst:.2e}, tolerance {tolerance:g})")
    return 0 if same else 1


def transformers_model(folder: Path, kind: type) -> nn.Module:
    """The model that transformers loads from a folder, in float64.  Raises OptionError."""
    try:
        import transformers
    except ImportError:
        raise OptionError("--check requires transformers: pip install transformers") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    task = CLASSES[kind.__name__].removeprefix("Camembert").removesuffix("Model")
    auto = getattr(transformers, f"AutoModel{task}")  # AutoModelForMaskedLM, …
    if not folder.is_dir():
        raise OptionError(f"{folder} is not a folder; --check requires one that transformers opens.")
    settings = dict(local_files_only=True, attn_implementation="eager", dtype=torch.float64, output_loading_info=True)
    try:
        model, info = auto.from_pretrained(folder, **settings)
    except Exception as error:  # a damaged folder can make transformers raise nearly anything
        raise OptionError(f"transformers cannot open {folder}: {str(error).strip().splitlines()[0][:300]}") from None
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise OptionError(f"{folder} is not a {CLASSES[kind.__name__]}: it lacks {sorted(missing)[0]}.")
    return model.eval()


def check_sizes(ours: nn.Module, theirs: nn.Module, source: str | Path, folder: str | Path) -> None:
    """Raises OptionError if the two models differ in size."""
    for name, key in CONFIG_KEYS.items():
        one, other = getattr(ours.config, name), getattr(theirs.config, key)
        if name not in ("dropout", "activation") and one != other:
            raise OptionError(f"{source} has {name} {one}, {folder} has {key} {other}: they are different models.")
    labels = getattr(ours, "labels", None)
    if labels is not None and len(labels) != theirs.config.num_labels:
        raise OptionError(f"{source} has {len(labels)} labels, {folder} has {theirs.config.num_labels}.")


def token_ids(config: EncoderConfig, tokenizer: Tokenizer | None) -> Tensor:
    """The sentences, padded (B, n); random ids if there is no tokenizer of the model's vocabulary size."""
    if tokenizer is not None and len(tokenizer) == config.vocab_size:
        texts = [tokenizer.encode(sentence)[: config.max_tokens] for sentence in SENTENCES]
    else:
        generator = torch.Generator().manual_seed(0)
        first, seqlens = min(7, config.vocab_size - 1), (min(n, config.max_tokens) for n in (9, 7, 40))
        texts = [torch.randint(first, config.vocab_size, (n,), generator=generator).tolist() for n in seqlens]
        print("note: there is no tokenizer of this vocabulary size beside the model; random tokens are used.")
    longest = max(map(len, texts))
    return torch.tensor([text + [config.pad_id] * (longest - len(text)) for text in texts])


@torch.no_grad()
def largest_differences(ours: nn.Module, theirs: nn.Module, input_ids: Tensor) -> dict[str, float]:
    """-> the largest absolute difference over the real tokens, for H_0, …, H_L and the output of a head, if any."""
    encoder = ours if isinstance(ours, Encoder) else ours.encoder
    real = input_ids != ours.config.pad_id
    outputs = theirs(input_ids=input_ids, attention_mask=real.long(), output_hidden_states=True)
    states = encoder.hidden_states(input_ids, real)
    pairs = {f"H_{layer}": pair for layer, pair in enumerate(zip(states, outputs.hidden_states, strict=True))}
    if "start_logits" in outputs:
        pairs["output"] = ours(input_ids, real), torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    elif "logits" in outputs:
        pairs["output"] = ours(input_ids, real), outputs.logits
    return {name: (a - b)[real if a.ndim == 3 else ...].abs().max().item() for name, (a, b) in pairs.items()}
