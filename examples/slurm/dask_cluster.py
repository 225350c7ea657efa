"""A cluster of SLURM jobs that grows with the work and ends with it.

    pip install 'tcgn_hub[cluster]' dask-jobqueue
    python examples/slurm/dask_cluster.py slides/ predicted/ --most 16
    python examples/slurm/dask_cluster.py slides/ predicted/ --show     # prints the job that would be submitted

Run it where jobs can be submitted from, in tmux or as a small job of its own: it has to last as long as the work.
"""

import argparse
from pathlib import Path

from dask_jobqueue import SLURMCluster
from distributed import Client

import tcgn_hub

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("slides", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--most", type=int, default=8, help="jobs at once")
parser.add_argument("--queue", help="partition of SLURM")
parser.add_argument("--show", action="store_true", help="print the job and submit nothing")

if __name__ == "__main__":
    args = parser.parse_args()
    cluster = SLURMCluster(
        cores=8,
        processes=1,  # a worker does one slide at a time, by all cores and one GPU
        memory="32GB",
        queue=args.queue,
        walltime="12:00:00",
        job_extra_directives=["--gres=gpu:1"],
        # a worker that is no daemon may read tiles by processes of its own, which a GPU needs
        job_script_prologue=["export DASK_DISTRIBUTED__WORKER__DAEMON=False"],
        worker_extra_args=["--resources", "GPU=1"],
    )
    if args.show:
        print(cluster.job_script())
    else:
        cluster.adapt(minimum=1, maximum=args.most)
        with Client(cluster) as client:
            slides = sorted(path for path in args.slides.iterdir() if path.suffix in (".svs", ".ndpi", ".tif", ".tiff"))
            tcgn_hub.predict_slides(slides, args.out, client=client, progress=True, told=print)
