"""k-nearest neighbours on one run's encoder."""

from salmask.evaluate import knn
from stages.evaluation import command

main = command("knn", knn.run)

if __name__ == "__main__":
    main()
