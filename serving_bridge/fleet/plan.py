"""How many replicas a fleet shall have and which one goes next: scaling and rolling restarts, as decisions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving_bridge.fleet.member import Member
from serving_bridge.fleet.orders import Orders
from serving_bridge.settings import ServingSettings


class FleetPlan:
    """What operators ordered, turned into one wish per replica; never fewer than `serving.min_healthy` by its doing.

    Attributes:
      wanted: replicas that there shall be.
      order_id: of the last order taken note of.
      refused: why that order is not carried out, or empty.
    """

    def __init__(self, settings: ServingSettings):
        self._settings = settings
        self._restart_id = ""
        self._to_restart: set[str] = set()
        self.wanted = settings.replicas
        self.order_id = self.refused = ""

    def begin(self, orders: Orders | None) -> None:
        """Takes up what was ordered of a controller before this one; servers that start now need no restart."""
        if orders is None:
            return
        self.order_id, self._restart_id = orders.order_id, orders.restart_id
        if orders.replicas is not None and orders.replicas >= max(1, self._settings.min_healthy):
            self.wanted = orders.replicas

    def take(self, orders: Orders | None, members: Sequence[Member]) -> bool:
        """Takes note of orders, or says in `refused` why not; whether they were new."""
        if orders is None or orders.order_id == self.order_id:
            return False
        self.order_id, self.refused = orders.order_id, ""
        least = max(1, self._settings.min_healthy)
        if orders.replicas is not None and orders.replicas != self.wanted:
            if orders.replicas < least:
                self.refused = f"{orders.replicas} replicas are fewer than serving.min_healthy allows ({least})"
            else:
                self.wanted = orders.replicas
        if orders.restart_id != self._restart_id:
            self._restart_id = orders.restart_id
            if self.wanted <= self._settings.min_healthy:
                self.refused = (
                    f"a rolling restart of {self.wanted} replicas would leave fewer than serving.min_healthy = "
                    f"{self._settings.min_healthy}: scale to {self._settings.min_healthy + 1} first"
                )
            else:
                self._to_restart = {member.name for member in members}
        return True

    def follow(self, members: Sequence[Member], *, join: Callable[[], None]) -> None:
        """Sets the replicas' wishes; `join` adds one."""
        staying = [member for member in members if member.wish != "leave"]
        for _ in range(self.wanted - len(staying)):
            join()
        # Those that serve nothing go first, then the highest number.
        for member in sorted(staying, key=lambda member: (member.state == "healthy", -member.index)):
            if len(staying) <= self.wanted:
                break
            if self._can_spare(member, members):
                member.wish = "leave"
                staying.remove(member)
        self._roll(members)

    def doing(self, members: Sequence[Member]) -> str:
        """What is still to be done of the orders, or empty."""
        todo = []
        if (num := len(members)) != self.wanted:
            todo.append(f"{num} of {self.wanted} replicas")
        if left := self._to_restart & {member.name for member in members}:
            todo.append(f"to restart: {', '.join(sorted(left))}")
        if now := [member.describe() for member in members if member.returning]:
            todo.append(f"restarting: {', '.join(now)}")
        if waiting := [m.describe() for m in members if m.state != "healthy" and m.wish == "serve" and not m.returning]:
            todo.append(f"not healthy: {', '.join(waiting)}")
        return "; ".join(todo)

    def _roll(self, members: Sequence[Member]) -> None:
        """Lets the next replica restart once the one before it serves again."""
        for member in members:
            if member.returning and member.wish == "serve" and member.state == "healthy":
                member.returning = False
        if not self._to_restart or any(member.returning for member in members):
            return
        for member in members:
            if member.name in self._to_restart and member.wish == "serve" and self._can_spare(member, members):
                self._to_restart.remove(member.name)
                member.wish, member.returning = "restart", True
                return
        self._to_restart &= {member.name for member in members}

    def _can_spare(self, member: Member, members: Sequence[Member]) -> bool:
        """Whether enough others serve, or this one serves nothing anyway."""
        others = sum(other.state == "healthy" and other.wish == "serve" for other in members if other is not member)
        return member.state != "healthy" or others >= self._settings.min_healthy
