import pytest

from pipeline.boundary import STAGES
from pipeline.run.plan import Cluster, PlanError, make_plan, parse_pools

ONE_POOL = "decode+detect+keypoint+align+embed"
TWO_POOLS = "decode/detect+keypoint+align+embed"
FIVE_POOLS = "decode/detect/keypoint/align/embed"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (ONE_POOL, [(STAGES, None)]),
        ("decode:8/detect+keypoint+align+embed:2", [(("decode",), 8), (STAGES[1:], 2)]),
        ("decode / detect + keypoint/align+embed", [(("decode",), None), (("detect", "keypoint"), None),
                                                    (("align", "embed"), None)]),
    ],
)
def test_layouts_are_read(layout, expected):
    assert parse_pools(layout) == expected


@pytest.mark.parametrize(
    "layout", ["", "decode", "detect/decode+keypoint+align+embed", ONE_POOL + "+embed", "decode//detect+keypoint+align",
               ONE_POOL + ":0", ONE_POOL + ":two", "decode+detect+keypoint+align:1+embed"],
)
def test_wrong_layouts_are_refused(layout):
    with pytest.raises(PlanError, match="--pools"):
        parse_pools(layout)


@pytest.mark.parametrize("layout", [ONE_POOL, TWO_POOLS, FIVE_POOLS])
@pytest.mark.parametrize("cpus", [0.25, 1, 2, 3, 8, 64, 1000])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_default_plans_always_fit(layout, cpus, gpus):
    """All pools together fit, and one CPU of two or more stays free, so nothing can wait for ever."""
    plan = make_plan(layout, Cluster(cpus, gpus), "cuda" if gpus else "cpu")
    asked = sum(pool.actors * pool.cpus for pool in plan.pools)
    assert 0 < asked <= (cpus - 1 if cpus >= 2 else cpus * 0.9) + 1e-9
    assert sum(pool.actors * pool.gpus for pool in plan.pools) <= gpus + 1e-9
    for pool in plan.pools:
        assert pool.actors >= 1 and 0 < pool.cpus <= 1 and pool.threads >= 1
        assert (pool.gpus > 0) == bool(gpus and {"detect", "keypoint", "embed"} & set(pool.stages))
    assert 1 <= plan.sink_workers <= 8


@pytest.mark.parametrize(
    ("cluster", "device", "workers"),
    [(Cluster(2, 0), "cpu", 1), (Cluster(64, 0), "cpu", 4), (Cluster(2, 1), "cuda", 1), (Cluster(16, 1), "cuda", 2),
     (Cluster(256, 8), "cuda", 8)],
)
def test_an_actor_on_a_gpu_gives_the_sink_more_to_do(cluster, device, workers):
    assert make_plan(ONE_POOL, cluster, device).sink_workers == workers


@pytest.mark.parametrize(
    ("layout", "blocks"), [(ONE_POOL, [2]), (TWO_POOLS, [1, 1]), ("decode+detect/keypoint+align+embed", [2, 1])]
)
def test_stages_after_decode_let_it_begin_the_next_block(layout, blocks):
    assert [pool.blocks_in_work for pool in make_plan(layout, Cluster(16, 1), "cuda").pools] == blocks


@pytest.mark.parametrize(
    ("layout", "cluster", "device", "actors", "threads"),
    [
        (ONE_POOL, Cluster(2, 0), "cpu", [1], [2]),
        (ONE_POOL, Cluster(1, 0), "cpu", [1], [1]),
        (ONE_POOL, Cluster(64, 0), "cpu", [16], [4]),
        (ONE_POOL, Cluster(2, 1), "cuda", [1], [2]),           # one GPU actor decodes with all CPUs
        (ONE_POOL, Cluster(16, 1), "cuda", [4], [4]),          # several share a GPU
        (ONE_POOL, Cluster(64, 8), "cuda", [16], [4]),
        (ONE_POOL, Cluster(256, 8), "cuda", [32], [8]),
        (TWO_POOLS, Cluster(64, 8), "cuda", [16, 8], [4, 4]),  # decoders feed the GPUs
        (ONE_POOL, Cluster(80, 1, 16), "cuda", [4], [4]),      # as without the 64 CPUs of other nodes
        (ONE_POOL, Cluster(80, 8, 16), "cuda", [8], [2]),
        (TWO_POOLS, Cluster(80, 1, 16), "cuda", [20, 1], [4, 4]),
    ],
)
def test_numbers_of_actors_and_threads(layout, cluster, device, actors, threads):
    plan = make_plan(layout, cluster, device)
    assert [pool.actors for pool in plan.pools] == actors
    assert [pool.threads for pool in plan.pools] == threads


@pytest.mark.parametrize(
    ("layout", "images", "actors"),
    [
        (ONE_POOL, 1, [1]), (ONE_POOL, 17, [2]), (ONE_POOL, 255, [16]), (ONE_POOL, 10**6, [16]), (ONE_POOL, None, [16]),
        ("decode/detect+keypoint+align+embed:3", 20, [2, 3]),
    ],
)  # fmt: skip
def test_there_are_no_more_actors_than_blocks_unless_their_number_is_given(layout, images, actors):
    plan = make_plan(layout, Cluster(64, 0), "cpu", images=images)
    assert [pool.actors for pool in plan.pools] == actors


@pytest.mark.parametrize(
    ("layout", "cluster", "device", "message"),
    [
        ("decode:8/detect+keypoint+align+embed:2", Cluster(4, 0), "cpu",
         r"decode 8 × 1 CPU \+ detect\+keypoint\+align\+embed 2 × 1 CPU against 4 CPUs"),
        ("decode:1/detect+keypoint+align+embed", Cluster(2, 0), "cpu", "of which one stays free"),
        (ONE_POOL, Cluster(4, 0), "cuda", "needs a GPU"),
        (ONE_POOL, Cluster(0, 0), "cpu", "no CPU is free.*--num-cpus"),
        (ONE_POOL + ":5000", Cluster(5000, 1), "cuda", "cannot share 1 GPUs.*--pools to at most 1000"),
        ("decode/detect:900/keypoint+align+embed", Cluster(5000, 1), "cuda",
         "900 actors of detect cannot share 1 GPUs.*--pools to at most 500"),
    ],
)
def test_a_plan_that_cannot_fit_shows_the_sums(layout, cluster, device, message):
    with pytest.raises(PlanError, match=message):
        make_plan(layout, cluster, device)


def test_threads_can_be_given_for_nodes_that_start_later():
    plan = make_plan(ONE_POOL, Cluster(4, 4), "cuda", threads=8)
    assert plan.pools[0].actors == 4 and plan.pools[0].threads == 8


@pytest.mark.parametrize(
    ("layout", "gpus", "shares"),
    [
        (ONE_POOL + ":3", 2, [0.5]),             # 0.666 would fit twice: a share lies on one GPU
        (ONE_POOL + ":4", 2, [0.5]), (ONE_POOL + ":2", 2, [1]), (ONE_POOL + ":1", 2, [1]),
        (ONE_POOL + ":5", 2, [0.333]),
        ("decode/detect:1/keypoint+align+embed:3", 2, [0, 1, 0.333]),
    ],
)  # fmt: skip
def test_shares_of_gpus_can_be_placed(layout, gpus, shares):
    assert [pool.gpus for pool in make_plan(layout, Cluster(16, gpus), "cuda").pools] == shares


def test_given_numbers_take_whole_cpus():
    plan = make_plan("decode:2/detect+keypoint+align+embed", Cluster(8, 0), "cpu")
    assert plan.pools[0].actors == 2 and plan.pools[0].cpus == 1
    assert plan.pools[1].actors * plan.pools[1].cpus <= 8 - 1 - 2


@pytest.mark.parametrize("layout", [ONE_POOL, TWO_POOLS, FIVE_POOLS])
def test_actors_with_a_gpu_fit_on_its_node(layout):
    """Four GPUs on a node with one CPU, and 63 CPUs elsewhere: an actor of a whole CPU would wait for ever."""
    plan = make_plan(layout, Cluster(64, 4, 1), "cuda")
    assert 0 < sum(pool.actors * pool.cpus for pool in plan.pools if pool.gpus) <= 1


@pytest.mark.parametrize(
    ("layout", "cluster", "device", "idle"),
    [
        (ONE_POOL, Cluster(16, 0, 0), "cpu", 0),
        (ONE_POOL, Cluster(16, 1), "cuda", 0),
        (ONE_POOL, Cluster(16, 1, 16), "cuda", 0),
        (ONE_POOL, Cluster(80, 1, 16), "cuda", 64),
        (TWO_POOLS, Cluster(80, 1, 16), "cuda", 0),
    ],
)
def test_cpus_of_nodes_without_a_gpu(layout, cluster, device, idle):
    assert make_plan(layout, cluster, device).idle_cpus(cluster) == idle
