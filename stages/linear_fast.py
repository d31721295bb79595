"""A linear classifier on cached features, on one run's encoder."""

from salmask.evaluate import linear_fast
from stages.evaluation import command

main = command("linear_fast", linear_fast.run)

if __name__ == "__main__":
    main()
