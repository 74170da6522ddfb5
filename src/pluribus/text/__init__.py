"""Text: tokenizers, encoders, tagging, and the roads of a study over a text column.

| module | what |
|---|---|
| `tokens` | tokenizers from a folder or trained on the table's own text; hostile text made harmless |
| `backbones` | encoders by name, from a local folder, or small random ones from a config |
| `encoder` | a backbone over token ids → features of a text and of its words |
| `buckets` | batches of texts of similar length; measured token waste |
| `model` | encoder → heads, with adapters inside where asked; rows × tasks in one forward |
| `network` | the fitted artefact: weights, tokenizer and config in one folder |
| `candidates` | roads without adapters: joint fine-tuning, frozen with heads, fine-tuning one a task |
| `adapted` | roads with adapters inside a frozen backbone |
| `tagging` | the kind of task whose labels are one tag a word |
| `hub` | serving: one backbone, hundreds of adapters and heads, under a memory budget |
| `export` | one task's adapter and head as a PEFT folder |

"""
