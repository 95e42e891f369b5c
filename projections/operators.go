package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// OperatorsName is the name under which Operators follows the log.
const OperatorsName = "operators"

// Operators does what operators ask of read models. It may run in another process than the one that feeds the model: all that the two
// share is in the database.
func (r *Runner) Operators() eventlog.Follower {
	return eventlog.Follower{Name: OperatorsName, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		for _, m := range batch {
			e, ok := m.Event.(events.ProjectionEvent)
			if !ok {
				continue
			}
			name, _ := events.ParseProjection(m.Stream)
			i := slices.IndexFunc(r.projections, func(p projection) bool { return p.name == name })
			if i < 0 {
				continue // of another version of this program
			}
			if err := r.operate(ctx, r.projections[i], e); err != nil {
				return fmt.Errorf("%s of %s: %w", e.Name(), name, err)
			}
		}
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}}
}

func (r *Runner) operate(ctx context.Context, p projection, e events.ProjectionEvent) error {
	switch e := e.(type) {
	case events.RebuildRequested:
		// From here on it is certain; keep does it, also in the next process.
		if err := r.prepare(ctx, p, false); err != nil {
			return err
		}
		select {
		case r.begun[p.name] <- struct{}{}:
		default: // it is due to look
		}
		return nil
	case events.DeadLetterRetried:
		return r.mend(ctx, p, e.Position, false)
	case events.DeadLetterSkipped:
		return r.mend(ctx, p, e.Position, true)
	}
	return nil
}

// mend applies the parked events of a stream, in order, until one fails again; with skip, without the first. Whoever feeds the read model
// is fenced, and learns anew what is parked. Doing it again does nothing more.
func (r *Runner) mend(ctx context.Context, p projection, position int64, skip bool) error {
	defer r.log.Touch(p.name) // answers that are kept of it are old, even where it is not known whether the transaction was committed
	return r.locked(ctx, p.name, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update followers set epoch = epoch + 1 where name = $1`, p.name); err != nil {
			return err
		}
		letters, err := Parked(ctx, tx, p.name, position, "")
		if err != nil || len(letters) == 0 {
			return err
		}
		drop := func(at int64) error {
			_, err := tx.Exec(ctx, `delete from `+p.name+`.dead_letters where position = $1`, at)
			return err
		}
		if skip {
			if letters[0].Position != position {
				return nil // it was the first when that was asked
			}
			if err := drop(position); err != nil {
				return err
			}
			letters = letters[1:]
		}
		if len(letters) == 0 {
			return nil
		}
		streams, err := r.log.Load(ctx, letters[0].Stream)
		if err != nil {
			return err
		}
		f := p.open()
		for _, letter := range letters {
			i := slices.IndexFunc(streams[letter.Stream].Events, func(m events.Recorded) bool { return m.Position == letter.Position })
			why := "the event cannot be read"
			if i >= 0 {
				if why, err = f.again(ctx, tx, p.name, streams[letter.Stream].Events[i]); err != nil {
					return err
				}
			}
			if why != "" {
				_, err := tx.Exec(ctx, `update `+p.name+`.dead_letters set error = $2 where position = $1`, letter.Position, why)
				return err
			}
			if err := drop(letter.Position); err != nil {
				return err
			}
		}
		return nil
	})
}

// again applies one event that was parked, or says why not.
func (f *fold) again(ctx context.Context, tx pgx.Tx, schema string, m events.Recorded) (why string, err error) {
	if err := f.run(ctx, tx, schema, []events.Recorded{m}); err != nil {
		return "", err
	}
	if p, ok := f.parked[m.Stream]; ok {
		return p.why, nil
	}
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		w, err := f.writes(schema)
		if err != nil {
			return err
		}
		return w.Run(ctx, tx)
	})
	if pg, ok := refused(err); ok {
		return pg.Message, nil
	}
	if err == nil {
		for _, t := range f.tables {
			t.commit()
		}
	}
	return "", err
}

// Parked reads the dead letters of a projection: those of a stream, or where none is named of the stream that the one at position is of.
// The first is what the stream is parked at. A projection that is not there has none.
func Parked(ctx context.Context, q Querier, name string, position int64, stream string) ([]DeadLetter, error) {
	if !slices.ContainsFunc(all, func(p projection) bool { return p.name == name }) {
		return nil, errors.New("there is no such projection")
	}
	table := name + ".dead_letters"
	if stream == "" {
		return Query[DeadLetter](ctx, q, "from "+table+" where stream = (select stream from "+table+" where position = $1) order by position", position)
	}
	return Query[DeadLetter](ctx, q, "from "+table+" where stream = $1 order by position", stream)
}
