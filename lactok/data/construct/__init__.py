"""Training data by construction (the paper's section 4.4): images from captions or collections, captioned, judged,
de-duplicated, and written as shards."""
