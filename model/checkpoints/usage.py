"""Programs for the model cards, by the hub's name of the task: each runs in the exported folder."""

PIPELINE = """\
from transformers import pipeline

model = pipeline("{task}", model=".")
print(model({text}))
"""
USAGE = {
    "fill-mask": PIPELINE.format(task="fill-mask", text='"Le camembert est <mask>."'),
    "text-classification": PIPELINE.format(task="text-classification", text='"Ce film est très beau."'),
    "nli": PIPELINE.format(
        task="text-classification", text='{"text": "Il pleut à Lille.", "text_pair": "Il fait beau à Lille."}'
    ),
    "token-classification": PIPELINE.format(task="token-classification", text='"Marie habite à Lille."'),
    "question-answering": """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForQuestionAnswering.from_pretrained(".")
inputs = tokenizer("Où habite Marie ?", "Marie habite à Lille.", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
start = outputs.start_logits[0].argmax()
end = start + outputs.end_logits[0, start:].argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
""",
    "feature-extraction": """\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
with torch.no_grad():
    hidden = model(**tokenizer("Le camembert est bon.", return_tensors="pt")).last_hidden_state
print(hidden.mean(dim=1))  # the mean over the tokens
""",
}
