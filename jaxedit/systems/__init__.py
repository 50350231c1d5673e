"""Systems: reconstruction of a scene, and its edits."""
