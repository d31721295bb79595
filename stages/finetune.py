"""Fine-tuning of one run's encoder on shares of the labels."""

from salmask.evaluate import finetune
from stages.evaluation import command

main = command("finetune", finetune.run)

if __name__ == "__main__":
    main()
