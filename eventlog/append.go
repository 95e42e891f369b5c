package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// mostEntries is how many entries one transaction takes at the most, unless a single call brings more.
const mostEntries = 500

// ErrRejected wraps what Postgres said of data that it does not take; sending it again will not help.
var ErrRejected = errors.New("the database does not take this")

type request struct {
	entries []Entry
	data    [][]string // encoded events of each entry
	details []string
	results []Result
	err     error
	done    chan struct{}
}

// Append appends each entry or says why not, in the order given; results[i] belongs to entries[i]. Entries of one stream follow each
// other: the second expects the version that the first leaves. Calls at the same time share a transaction (group commit). When it
// returns, what it says was appended is on disk.
//
// An error says that nothing is known of any entry, for example because the connection broke during the commit: append them again, and
// those that were appended come back as duplicates.
func (l *Log) Append(ctx context.Context, entries ...Entry) ([]Result, error) {
	r := &request{
		entries: entries, data: make([][]string, len(entries)), details: make([]string, len(entries)),
		results: make([]Result, len(entries)), done: make(chan struct{}),
	}
	for i, e := range entries {
		for _, ev := range e.Events {
			d, err := events.Encode(ev)
			if err != nil {
				return nil, err
			}
			r.data[i] = append(r.data[i], string(d))
		}
		d, err := json.Marshal(detail{e.Outcome.Problem, e.Outcome.Result})
		if err != nil {
			return nil, fmt.Errorf("encode the outcome of %s: %w", e.Outcome.Name, err)
		}
		r.details[i] = string(d)
	}
	select {
	case l.queue <- r:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	<-r.done // once it is in the queue, its fate is worth the few milliseconds
	return r.results, r.err
}

// writer commits what waits, as much as there is, without a timer: while one batch commits, the next gathers.
func (l *Log) writer(ctx context.Context) {
	for {
		var batch []*request
		select {
		case r := <-l.queue:
			batch = append(batch, r)
		case <-ctx.Done():
			l.drain()
			return
		}
		for n := len(batch[0].entries); n < mostEntries; {
			select {
			case r := <-l.queue:
				batch = append(batch, r)
				n += len(r.entries)
				continue
			default:
			}
			break
		}
		l.commit(ctx, batch)
		for _, r := range batch {
			close(r.done)
		}
	}
}

func (l *Log) drain() {
	for {
		select {
		case r := <-l.queue:
			r.err = fault.New(fault.Unavailable, "the event log is closing")
			close(r.done)
		default:
			return
		}
	}
}

// item is an entry on its way, and where its result goes.
type item struct {
	*Entry
	data   []string
	detail string
	result *Result
}

func (l *Log) commit(ctx context.Context, batch []*request) {
	// A commit that has begun is finished whoever goes away, but not for ever.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var items []item
	seen := map[uuid.UUID]bool{}
	var twice []item // the same command twice in one batch: the second is a duplicate once the first is in
	for _, r := range batch {
		for i := range r.entries {
			it := item{&r.entries[i], r.data[i], r.details[i], &r.results[i]}
			if id := it.Outcome.Command; seen[id] {
				twice = append(twice, it)
			} else {
				seen[id] = true
				items = append(items, it)
			}
		}
	}
	err := l.insert(ctx, items)
	if err == nil && len(twice) > 0 {
		err = l.insert(ctx, twice)
	}
	for _, r := range batch {
		if r.err = err; err == nil {
			l.resolve(r.results)
		}
	}
}

// insert puts items in, in one round trip when all is as expected. Otherwise the database names what is not, and the rest goes again.
func (l *Log) insert(ctx context.Context, items []item) error {
	for len(items) > 0 {
		known, stale, err := l.insertAll(ctx, items)
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg) && (pg.Code[:2] == "22" || pg.Code[:2] == "23" || pg.Code[:2] == "54"): // data, constraint, limit
			if len(items) == 1 {
				items[0].result.Err = fmt.Errorf("%w: %w", ErrRejected, err)
				return nil
			}
			// One of them is bad: halves find it. A stream's later entries then conflict and are decided again.
			if err := l.insert(ctx, items[:len(items)/2]); err != nil {
				return err
			}
			items = items[len(items)/2:]
			continue
		case err != nil:
			return fmt.Errorf("append: %w", err)
		case len(known) == 0 && len(stale) == 0:
			return nil
		}
		var outcomes map[uuid.UUID]Outcome
		if len(known) > 0 {
			if outcomes, err = l.Outcomes(ctx, known...); err != nil {
				return err
			}
		}
		moved := map[string]bool{}
		for _, s := range stale {
			moved[s] = true
		}
		left := items[:0]
		for _, it := range items {
			if o, ok := outcomes[it.Outcome.Command]; ok {
				*it.result = Result{Outcome: o, Err: ErrDuplicate}
				moved[it.Outcome.Stream] = true // what follows in this stream was decided on top of it
			} else if moved[it.Outcome.Stream] {
				it.result.Err = ErrConflict
			} else {
				left = append(left, it)
			}
		}
		items = left
	}
	return nil
}

// arrays are the arguments of append_events (migrations/00001), one slice for each column.
type arrays struct {
	ids                                 []uuid.UUID
	names, streams, actors, status      []string
	first, last                         []int64
	digests, details                    []string
	sNames                              []string
	sExpected, sVersions, sFirst, sLast []int64
	eStreams                            []string
	eVersions                           []int64
	eTypes, eData                       []string
	eCommands, eCorrelations            []uuid.UUID
	eCausations                         []int64
	eActors                             []string
}

func (l *Log) insertAll(ctx context.Context, items []item) (known []uuid.UUID, stale []string, err error) {
	var a arrays
	place := map[string]int{} // stream → index in sNames
	recorded := make([]events.Recorded, 0, len(items))
	if now := time.Now().UTC().Truncate(time.Microsecond); now.After(l.now) {
		l.now = now
	}
	for i := range items {
		it := &items[i]
		o := &it.Outcome
		s, ok := place[o.Stream]
		if !ok {
			s = len(a.sNames)
			place[o.Stream] = s
			a.sNames = append(a.sNames, o.Stream)
			a.sExpected = append(a.sExpected, it.Expected)
			a.sVersions = append(a.sVersions, it.Expected)
			a.sFirst = append(a.sFirst, 0)
			a.sLast = append(a.sLast, 0)
		}
		if a.sVersions[s] != it.Expected {
			// The entries of this stream do not follow each other: whoever decided this one did not know the one before.
			a.sExpected[s] = -1
		}
		var first, last int64
		for n, ev := range it.Events {
			a.sVersions[s]++
			last = int64(len(a.eTypes) + 1)
			if n == 0 {
				first = last
			}
			if a.sFirst[s] == 0 {
				a.sFirst[s] = last
			}
			a.sLast[s] = last
			a.eStreams = append(a.eStreams, o.Stream)
			a.eVersions = append(a.eVersions, a.sVersions[s])
			a.eTypes = append(a.eTypes, ev.Name())
			a.eData = append(a.eData, it.data[n])
			a.eCommands = append(a.eCommands, o.Command)
			a.eCorrelations = append(a.eCorrelations, it.Correlation)
			a.eCausations = append(a.eCausations, it.Causation)
			a.eActors = append(a.eActors, o.Actor)
			recorded = append(recorded, events.Recorded{
				Position: last, Stream: o.Stream, Version: a.sVersions[s], Command: o.Command, Correlation: it.Correlation,
				Causation: it.Causation, Actor: o.Actor, Time: l.now, Size: len(it.data[n]), Event: ev,
			})
		}
		a.ids = append(a.ids, o.Command)
		a.names = append(a.names, o.Name)
		a.streams = append(a.streams, o.Stream)
		a.actors = append(a.actors, o.Actor)
		a.status = append(a.status, string(o.Status))
		a.first = append(a.first, first)
		a.last = append(a.last, last)
		a.digests = append(a.digests, o.Digest)
		a.details = append(a.details, it.detail)
	}
	if err := l.makePartitions(ctx, int64(len(a.eTypes))); err != nil {
		return nil, nil, err
	}
	var head int64
	err = l.pool.QueryRow(ctx,
		`select * from append_events($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23)`,
		a.ids, a.names, a.streams, a.actors, a.status, a.first, a.last, a.digests, a.details,
		a.sNames, a.sExpected, a.sVersions, a.sFirst, a.sLast,
		a.eStreams, a.eVersions, a.eTypes, a.eData, a.eCommands, a.eCorrelations, a.eCausations, a.eActors, l.now,
	).Scan(&head, &known, &stale)
	if err != nil || len(known) > 0 || len(stale) > 0 {
		return known, stale, err
	}
	for i := range items {
		o := items[i].Outcome
		o.Time = l.now
		if a.first[i] > 0 {
			o.First, o.Last = head+a.first[i], head+a.last[i]
		}
		*items[i].result = Result{Outcome: o}
	}
	for i := range recorded {
		recorded[i].Position += head
	}
	l.stats.batches.Add(1)
	l.stats.entries.Add(int64(len(items)))
	if len(recorded) > 0 {
		l.tail.push(recorded)
		select {
		case l.notify <- struct{}{}:
		default: // one is due
		}
	}
	return nil, nil, nil
}

// findPartitions learns how far partitions reach.
func (l *Log) findPartitions(ctx context.Context) error {
	var n int64
	err := l.pool.QueryRow(ctx, `select count(*) from pg_inherits where inhparent = 'events'::regclass`).Scan(&n)
	if err != nil {
		return fmt.Errorf("count the partitions of events: %w", err)
	}
	l.partitions = n * partitionSize
	return nil
}

// makePartitions makes the partition after the one that is being filled, while there is still room for thousands of batches. The
// table is made apart and then attached, which lets readers and writers go on.
func (l *Log) makePartitions(ctx context.Context, more int64) error {
	for l.Head()+more+partitionSize/10 >= l.partitions {
		name := fmt.Sprintf("events_%d", l.partitions/partitionSize)
		_, err := l.pool.Exec(ctx, fmt.Sprintf(`
			create table if not exists %[1]s (like events including defaults including constraints);
			do $$ begin
				if not exists (select from pg_inherits where inhrelid = '%[1]s'::regclass) then
					alter table events attach partition %[1]s for values from (%[2]d) to (%[3]d);
				end if;
			end $$`, name, l.partitions, l.partitions+partitionSize))
		if err != nil {
			return fmt.Errorf("make partition %s: %w", name, err)
		}
		l.partitions += partitionSize
	}
	return nil
}
