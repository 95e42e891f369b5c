package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standing is where a follower stands.
type Standing struct {
	Name     string
	Position int64
	Lag      int64         // events behind it
	Late     time.Duration // since the first of these was recorded
}

// Standings says where every follower stands that ever ran, by name. Of those that another process runs it is up to a second old.
func (l *Log) Standings(ctx context.Context) ([]Standing, error) {
	rows, err := l.pool.Query(ctx, `select name, position from followers order by name`)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Standing, err error) {
		return s, row.Scan(&s.Name, &s.Position)
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	var next []int64
	for i := range all {
		s := &all[i]
		s.Position = max(s.Position, l.progress.reached(s.Name))
		if s.Lag = max(0, l.Head()-s.Position); s.Lag > 0 {
			next = append(next, s.Position+1)
		}
	}
	if len(next) == 0 {
		return all, nil
	}
	// Their age by the clock of the process that recorded them, as of the events of this one.
	rows, err = l.pool.Query(ctx, `select e.position, e.recorded_at from unnest($1::bigint[]) p cross join lateral (
		select position, recorded_at from events where position = p) e`, next)
	if err != nil {
		return nil, fmt.Errorf("read the age of events: %w", err)
	}
	var position int64
	var at time.Time
	times := map[int64]time.Time{}
	if _, err := pgx.ForEachRow(rows, []any{&position, &at}, func() error { times[position] = at; return nil }); err != nil {
		return nil, fmt.Errorf("read the age of events: %w", err)
	}
	for i := range all {
		if at, ok := times[all[i].Position+1]; ok && all[i].Lag > 0 {
			all[i].Late = max(0, time.Since(at))
		}
	}
	return all, nil
}

// reached is where a follower of this process is, 0 where it is none.
func (p *progress) reached(name string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.at[name]; ok && s.here {
		return s.position
	}
	return 0
}
