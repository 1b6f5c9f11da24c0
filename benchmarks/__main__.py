"""Run the benchmarks named on the command line, or all."""

import sys

from benchmarks import (
    ablation,
    accuracy,
    cold_items,
    evaluation,
    forgetting,
    generator,
    index,
    item_to_item,
    losses,
    online,
    preparation,
    replay,
    serving,
    soak,
    states,
    swaps,
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
                "losses_last": losses.run_last,
                "losses_users": losses.run_users,
                "item_to_item": item_to_item.run,
                "cold_items": cold_items.run,
                "index": index.run,
                "ablation": ablation.run,
                "ablation_long": ablation.run_long,
                "states": states.run,
                "online": online.run,
                "replay": replay.run,
                "serving": serving.run,
                "serving_million": serving.run_million,
                "serving_long": serving.run_long,
                "swaps": swaps.run,
                "soak": soak.run,
                "forgetting": forgetting.run,
            },
            sys.argv[1:],
        )
    )
