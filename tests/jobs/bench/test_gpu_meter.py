import time

from jobs.bench.gpu_meter import GpuMeter, nvml


def test_without_a_gpu_nothing_is_measured():
    with GpuMeter(None) as meter:
        pass
    assert meter.busy(0, time.time()) is None


def test_the_mean_is_that_of_the_moments_asked_for(monkeypatch):
    monkeypatch.setattr("jobs.bench.gpu_meter.SAMPLE_S", 0.01)
    percents = iter([10.0, 30.0] + [90.0] * 1000)
    moments = []

    def read():
        moments.append(time.time())
        return next(percents)

    with GpuMeter(read) as meter:
        while len(moments) < 4:
            time.sleep(0.01)
    assert meter.busy(0, moments[2] - 0.005) == 20.0
    assert meter.busy(moments[2] - 0.005, time.time()) == 90.0
    assert meter.busy(0, 1) is None


def test_nvml_reads_a_percent_or_says_that_it_cannot():
    read = nvml()
    assert read is None or 0 <= read() <= 100
