"""Host side: clip sources, text tokens, and the pipeline that turns them into batches.

shapes, shapes_source    the procedural world; needs no files
folder, tfds, layouts    a folder of videos, ArrayRecord sets, UCF-101 / BAIR / Kinetics-600
prepare                  a folder of videos to an ArrayRecord set
tokens                   text to identifiers
pipeline                 `batches(source, tokenizer, config)`: shuffled, sharded, resumable
media                    reading and writing videos, contact sheets
"""
