"""Host-side data: sources of clips, captions and the pipeline that batches them."""
