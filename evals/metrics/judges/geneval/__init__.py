"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): does an image hold the objects, counts, colours and places it was
asked for? An instance detector finds objects, a CLIP classifier names their colours, and a decision logic compares
both with the prompt's metadata."""
