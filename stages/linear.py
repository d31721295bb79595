"""The linear protocol on one run's encoder."""

from salmask.evaluate import linear
from stages.evaluation import command

main = command("linear", linear.run)

if __name__ == "__main__":
    main()
