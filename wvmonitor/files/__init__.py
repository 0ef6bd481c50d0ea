"""Files in and out: the one room that opens weights and strict JSON documents.

- `safetensors`: one weight file, read tensor by tensor or in ranges of rows; the atomic writer.
- `checkpoint_files`: a model or adapter folder, sharded or not, as one set of tensors.
- `documents`: JSON with nothing left to interpretation (no torch is imported for it).
- `header`, `storage`, `atomic`: what those stand on.
"""
