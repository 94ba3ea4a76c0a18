"""sentence-transformers: its trainer with in-batch negatives and an evaluator, then encode and a semantic search."""

from __future__ import annotations

import torch
from datasets import Dataset
from outcome import done
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from sentence_transformers.util import semantic_search
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from warming import Warm

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(100))]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
BertModel(config).save_pretrained("bert")
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    mask_token="[MASK]",
).save_pretrained("bert")  # fmt: skip
part = Transformer("bert", max_seq_length=16)
model = SentenceTransformer(modules=[part, Pooling(64)])
texts = [" ".join(f"w{(7 * row + step) % 100}" for step in range(3 + row % 9)) for row in range(64)]
data = Dataset.from_dict({"anchor": texts, "positive": [" ".join(reversed(text.split())) for text in texts]})
arguments = SentenceTransformerTrainingArguments(
    output_dir="out", per_device_train_batch_size=8, max_steps=8, logging_steps=2, save_strategy="no",
    report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = SentenceTransformerTrainer(
    model,
    arguments,
    train_dataset=data,
    eval_dataset=data,
    loss=MultipleNegativesRankingLoss(model),
    callbacks=[Warm()],
)
trainer.train()
evaluation = trainer.evaluate()
encoded = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
found = semantic_search(encoded[:4], encoded, top_k=3)
as_arrays = model.encode(texts[:5])
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
done(model=model, losses=losses, loss=evaluation["eval_loss"], found=found, first=as_arrays[0, :4].tolist())
