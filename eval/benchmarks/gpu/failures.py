"""A plugin of pytest that prints each failure when it happens: a run that is stopped has no summary of them."""

import pytest


class Failures:
    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")


@pytest.hookimpl(trylast=True)  # after pytest's own, which makes the terminal
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):  # the processes of xdist have none
        config.pluginmanager.register(Failures(terminal))
