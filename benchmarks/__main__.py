"""Run the benchmarks named on the command line, or all."""

import sys

from benchmarks import (
    ablation,
    accuracy,
    cold_items,
    evaluation,
    generator,
    impressions,
    item_to_item,
    preparation,
    training_speed,
    vector_memory,
    vector_speed,
)
from benchmarks.record import main

if __name__ == "__main__":
    sys.exit(
        main(
            {
                "generator": generator.run,
                "training_speed": training_speed.run,
                "vector_speed": vector_speed.run,
                "vector_memory": vector_memory.run,
                "evaluation": evaluation.run,
                "preparation": preparation.run,
                "accuracy_last": accuracy.run_last,
                "accuracy_users": accuracy.run_users,
                "impressions_last": impressions.run_last,
                "impressions_users": impressions.run_users,
                "item_to_item": item_to_item.run,
                "cold_items": cold_items.run,
                "ablation": ablation.run,
            },
            sys.argv[1:],
        )
    )
