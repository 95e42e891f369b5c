package eventlog

import (
	"context"
	"time"
)

const (
	turnLock     = 7236837412             // an advisory lock of Postgres
	turnMost     = 100 * time.Millisecond // that others may take; then whoever waits goes on without
	crowdedFor   = time.Second            // after another process has appended
	turnsAfter   = time.Second            // a turn that did not come, none is waited for
	turnsEndMost = time.Second
)

// Turn waits, where other processes append too, until none of them is in a turn; done ends it. Who gathers, decides and appends in a turn
// has batches as large as if all were one process; otherwise each of n has an nth of what there is, and a batch costs as much as twenty
// commands. It is a courtesy: who does without, or loses the turn, breaks nothing. One goroutine at a time may be in a turn.
func (l *Log) Turn(ctx context.Context) (done func()) {
	done = func() {}
	begin := time.Now()
	if begin.Sub(time.Unix(0, l.crowdedAt.Load())) > crowdedFor || begin.Before(l.noTurns) {
		return done
	}
	conn, err := l.pool.Acquire(ctx)
	if err == nil {
		_, err = conn.Exec(ctx, `select set_config('lock_timeout', $2, true), pg_advisory_lock($1)`, turnLock, turnMost.String())
		if err != nil {
			conn.Release()
		}
	}
	if err != nil {
		l.noTurns = begin.Add(turnsAfter)
		if ctx.Err() == nil {
			l.logger.Info("no turn among the processes that append; going on without", "error", err)
		}
		return done
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), turnsEndMost)
		defer cancel()
		if _, err := conn.Exec(ctx, `select pg_advisory_unlock($1)`, turnLock); err != nil {
			_ = conn.Conn().Close(ctx) // which ends the turn as well
		}
		conn.Release()
	}
}
