"""What earlier versions of timm's `train.py` call: that program is in its repository alone, and in no distribution.

Like it, this does not know of our package, and takes its options.
"""

import argparse
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, accuracy, get_outdir


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--data-dir", "--model", "--device", "--output", "--experiment", "--resume"):
        parser.add_argument(name, default="")
    for name, kind in (("--num-classes", int), ("--epochs", int), ("--batch-size", int), ("--lr", float)):
        parser.add_argument(name, type=kind)
    for name, kind, default in (("--workers", int, 4), ("--layer-decay", float, None), ("--warmup-epochs", int, 5)):
        parser.add_argument(name, type=kind, default=default)
    for name in ("--pretrained", "--no-aug", "--model-ema", "--grad-checkpointing"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)

    none = dict.fromkeys(["drop_path_rate", "drop_block_rate", "global_pool", "bn_momentum", "bn_eps"])
    more = {**none, "in_chans": 3, "drop_rate": 0.0, "scriptable": False, "checkpoint_path": ""}
    model = create_model(args.model, pretrained=args.pretrained, num_classes=args.num_classes, **more)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    config = resolve_data_config(vars(args), model=model)
    model.to(device=device)
    optimizer = create_optimizer_v2(model, "adamw", lr=args.lr, weight_decay=0.05, layer_decay=args.layer_decay)
    task = ClassificationTask(model, criterion_kwargs={"smoothing": 0.1}, device=device)
    if args.model_ema:
        task.setup_ema(decay=0.9)
    shown = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    train, test = (
        create_loader(
            create_dataset("", root=args.data_dir, split=split, is_training=split == "train"),
            batch_size=args.batch_size,
            is_training=split == "train",
            no_aug=args.no_aug,
            num_workers=args.workers,
            device=device,
            **shown,
            **({} if split == "train" else {"crop_pct": config["crop_pct"]}),
        )
        for split in ("train", "validation")
    )
    folder = get_outdir(args.output, args.experiment, inc=not args.resume)
    saver = CheckpointSaver(model, optimizer, args, task=task, checkpoint_dir=folder, recovery_dir=folder)
    start, last = 0, Path(folder, "last.pth.tar")
    if args.resume == "auto" and last.exists():
        start = resume_task_checkpoint(task, str(last), optimizer)
        if args.model_ema:
            load_task_ema_checkpoint(task, str(last))
    scheduler, epochs = create_scheduler_v2(
        optimizer, num_epochs=args.epochs, warmup_epochs=args.warmup_epochs, updates_per_epoch=len(train)
    )
    scheduler.step(start)
    for epoch in range(start, epochs):
        model.train()
        for pixels, classes in train:
            task(pixels, classes)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema()
        scheduler.step(epoch + 1)
        judged = task.get_eval_model(ema=args.model_ema).eval()
        with torch.inference_mode():
            right = [accuracy(judged(pixels), classes)[0].item() for pixels, classes in test]
        saver.save_checkpoint(epoch, metric=sum(right) / len(right))
        print(f"epoch {epoch}: {sum(right) / len(right):.1f} % right")


if __name__ == "__main__":
    main()
