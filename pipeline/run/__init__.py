"""How the job runs: plan, graph, actors, watchdog, progress. The only room that knows Ray."""
