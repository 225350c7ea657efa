"""What `validate.py` of timm calls; see `train.py`."""

import argparse
import json

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model, load_checkpoint
from timm.utils import accuracy


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--data-dir", "--model", "--device", "--checkpoint"):
        parser.add_argument(name, default="")
    for name, default in (("--num-classes", None), ("--batch-size", 256), ("--workers", 4)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--use-ema", action="store_true")
    args = parser.parse_args()
    more = {"in_chans": 3, "global_pool": None, "scriptable": False}
    model = create_model(args.model, pretrained=not args.checkpoint, num_classes=args.num_classes, **more)
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint, args.use_ema)
    config = resolve_data_config(vars(args), model=model, use_test_size=True)
    model = model.to(device=torch.device(args.device)).eval()
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    loader = create_loader(
        create_dataset("", root=args.data_dir, split="validation"),
        batch_size=args.batch_size,
        num_workers=args.workers,
        device=torch.device(args.device),
        **{key: config[key] for key in keys},
    )
    with torch.inference_mode():
        right = [accuracy(model(pixels), classes)[0].item() for pixels, classes in loader]
    print(json.dumps({"model": args.model, "top1": sum(right) / len(right)}))


if __name__ == "__main__":
    main()
