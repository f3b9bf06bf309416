"""The other side of `process.py`: this file is run by an environment's Python, and imports nothing of this project.

`python -I worker.py PACKAGE`, PACKAGE a key of PACKAGES. A request is a line of JSON on stdin, its answer a line on
stdout; tensors are in safetensors files that both name. What the packages print goes to stderr.

    {"do": "load", "tensors": FILE, "device": "cpu", ...}   {"versions": {...}}
    {"do": "score", "tensors": FILE, "answer": FILE, ...}   {}, the answer's tensors in FILE
    an error of the package                                 {"error": "TypeError: ..."}

ImageReward: load also takes `vocabulary`, the path of bert-base-uncased's; score takes images `0`, `1`, ..., uint8
(H, W, 3) RGB, and a list `prompts`; answers `scores`, float64 (N,).
mmdet: score takes such images; answers, of image n, `n.labels`, `n.scores`, `n.boxes`, `n.masks` (uint8), unsorted.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import json
import os
import sys
import tempfile
import types
from typing import Any, ClassVar


class ImageReward:
    """image-reward's own class and `score`, one image at a time, as published.

    Its training (`ReFL`), which needs diffusers, accelerate and datasets, is not imported. The vocabulary is a given
    file's, since the package would ask a hub for it; so is the text encoder's configuration, med_config.json's values.
    """

    distributions = ("image-reward", "transformers", "timm", "fairscale", "torch", "numpy", "pillow")
    config: ClassVar[dict[str, Any]] = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 30524,
        "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12,
        "initializer_range": 0.02, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1,
        "encoder_width": 768, "add_cross_attention": True,
    }  # fmt: skip

    def __init__(self) -> None:
        sys.modules["ImageReward.ReFL"] = types.ModuleType("ImageReward.ReFL")
        self.package = importlib.import_module("ImageReward.ImageReward")

    def load(self, tensors: dict[str, Any], device: str, vocabulary: str) -> None:
        """Strictly, which the package itself is not."""
        blip: Any = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
        blip.init_tokenizer = lambda: self._tokenizer(vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "med_config.json")
            with open(path, "w") as file:
                json.dump(self.config, file)
            self.model = self.package.ImageReward(med_config=path, device=device).to(device)
        found = self.model.load_state_dict(tensors, strict=False)
        missing = [name for name in found.missing_keys if not _unused(name)]
        unexpected = [name for name in found.unexpected_keys if not _unused(name)]
        if missing or unexpected:
            raise ValueError(f"missing: {', '.join(missing[:5])}; unexpected: {', '.join(unexpected[:5])}")
        self.model.eval()

    @staticmethod
    def _tokenizer(vocabulary: str) -> Any:
        """As the package's init_tokenizer, from a file."""
        made = importlib.import_module("transformers").BertTokenizer(vocabulary)
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        made.enc_token_id = made.additional_special_tokens_ids[0]
        return made

    def score(self, images: list[Any], prompts: list[str]) -> dict[str, Any]:
        import torch
        from PIL import Image

        with torch.no_grad():
            pictures = [Image.fromarray(image.numpy()) for image in images]
            values = [self.model.score(prompt, picture) for prompt, picture in zip(prompts, pictures)]
        return {"scores": torch.tensor(values, dtype=torch.float64)}


def _unused(name: str) -> bool:
    return name.startswith(("blip.vision_proj.", "blip.text_proj.")) or name.endswith(".position_ids")


class MmDet:
    """mmdetection's Mask2Former (Swin-S, COCO) by its own `init_detector` and `inference_detector`.

    mmcv-lite has no compiled operators; a placeholder stands for them, which raises when one is called, and the
    deformable attention is mmcv's own in PyTorch on every device. Images are resized as bytes, as in mmdetection 2,
    which GenEval runs; mmdetection 3's settings of this model resize them as floats.
    """

    distributions = ("mmdet", "mmengine", "mmcv-lite", "opencv-python-headless", "torch", "numpy")
    settings = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"

    def __init__(self) -> None:
        sys.modules["mmcv._ext"] = _Uncompiled("mmcv._ext")
        self.apis = importlib.import_module("mmdet.apis")
        attention: Any = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
        attention.IS_CUDA_AVAILABLE = False

    def load(self, tensors: dict[str, Any], device: str) -> None:
        package = os.path.dirname(importlib.import_module("mmdet").__file__ or "")
        self.model = self.apis.init_detector(
            os.path.join(package, ".mim", "configs", "mask2former", self.settings), device=device
        )
        self.model.cfg.test_dataloader.dataset.pipeline[0].to_float32 = False
        constants = ("relative_position_index", "criterion.empty_weight")
        found = self.model.load_state_dict(tensors, strict=False)
        missing = [name for name in found.missing_keys if not name.endswith(constants)]
        if missing or found.unexpected_keys:
            raise ValueError(f"missing: {', '.join(missing[:5])}; unexpected: {', '.join(found.unexpected_keys[:5])}")

    def score(self, images: list[Any]) -> dict[str, Any]:
        answer = {}
        for place, image in enumerate(images):
            bgr = image.numpy()[..., ::-1].copy()
            found = self.apis.inference_detector(self.model, bgr).pred_instances
            answer[f"{place}.labels"] = found.labels.cpu()
            answer[f"{place}.scores"] = found.scores.cpu()
            answer[f"{place}.boxes"] = found.bboxes.cpu()
            answer[f"{place}.masks"] = found.masks.cpu().byte()
        return answer


class _Uncompiled(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"mmcv's compiled operator {name} was called, and nothing is compiled here")

        return absent


PACKAGES: dict[str, Any] = {"image-reward": ImageReward, "mmdet": MmDet}


def _read(file: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def _write(tensors: dict[str, Any], file: str) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def main(package: str) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints is no answer
    backend: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            backend = backend or PACKAGES[package]()
            tensors = _read(request["tensors"]) if "tensors" in request else {}
            answer: dict[str, Any] = {}
            more = {k: v for k, v in request.items() if k not in ("do", "tensors", "answer")}
            if request["do"] == "load":
                backend.load(tensors, **more)
            elif request["do"] == "score":
                images = [tensors[str(place)] for place in range(len(tensors))]
                _write(backend.score(images, **more), request["answer"])
            if request["do"] != "score":
                answer["versions"] = {name: importlib.metadata.version(name) for name in backend.distributions}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
