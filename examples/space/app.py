"""The page of `tcgn demo` as a Space of Hugging Face; on a machine of one's own, `tcgn demo` opens the same."""

from tcgn_hub.demo import launch_demo

if __name__ == "__main__":
    # a Space is reached through a proxy, and listens on all addresses of its container
    launch_demo(host="0.0.0.0", max_mb=50)
