package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
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
	woken := 0
	for {
		batch := l.gather(ctx, woken)
		if batch == nil {
			l.drain()
			return
		}
		l.commit(ctx, batch)
		for _, r := range batch {
			close(r.done)
		}
		woken = len(batch)
	}
}

// Bounds of waiting for those who were just woken.
const (
	mostYields = 64 // in which nobody came
	gatherMost = 200 * time.Microsecond
)

// gather takes all requests that wait, nil when ctx ends. The woken, whose batch has just ended, come again now if they come at all: to
// have them in this batch too is worth some yields of the processor, since a batch costs as much as thirty events.
func (l *Log) gather(ctx context.Context, woken int) []*request {
	want := woken + len(l.queue)
	var batch []*request
	select {
	case r := <-l.queue:
		batch = append(batch, r)
	case <-ctx.Done():
		return nil
	}
	begin := time.Now()
	for n, yields := len(batch[0].entries), 0; n < mostEntries; {
		select {
		case r := <-l.queue:
			batch = append(batch, r)
			n += len(r.entries)
			yields = 0
			continue
		default:
		}
		if len(batch) >= want || yields == mostYields || time.Since(begin) > gatherMost {
			break
		}
		yields++
		runtime.Gosched()
	}
	return batch
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
			for _, done := range r.results {
				if done.Err == nil || errors.Is(done.Err, ErrDuplicate) {
					l.resolve(done.Outcome)
				}
			}
		}
	}
}

// insert puts items in, in one round trip when all is as expected. Otherwise the database names what is not, and the rest goes again.
func (l *Log) insert(ctx context.Context, items []item) error {
	for len(items) > 0 {
		b := newBatch(items, l.clock())
		err := l.write(ctx, b)
		var pg *pgconn.PgError
		if err == nil {
			return nil
		}
		if !errors.As(err, &pg) {
			return fmt.Errorf("append: %w", err)
		}
		switch class := pg.Code[:2]; {
		case pg.Code == "RF002" || pg.Code == "23505":
			left, err := l.without(ctx, items, b)
			if err != nil {
				return err
			}
			if len(left) == len(items) {
				return fmt.Errorf("append: the database finds an obstacle and none is there: %w", pg)
			}
			items = left
		case class == "22" || class == "23" || class == "54": // data, constraint, limit
			if len(items) == 1 {
				items[0].result.Err = fmt.Errorf("%w: %w", ErrRejected, err)
				return nil
			}
			// One of them is bad: halves find it. A stream's later entries then conflict and are decided again.
			if err := l.insert(ctx, items[:len(items)/2]); err != nil {
				return err
			}
			items = items[len(items)/2:]
		default:
			return fmt.Errorf("append: %w", err)
		}
	}
	return nil
}

// without gives the entries that cannot be appended their result and returns the others.
func (l *Log) without(ctx context.Context, items []item, b *batch) ([]item, error) {
	var known []uuid.UUID
	var stale []string
	ids := make([]uuid.UUID, len(items))
	for i, it := range items {
		ids[i] = it.Outcome.Command
	}
	err := l.pool.QueryRow(ctx, `select * from append_obstacles($1, $2, $3)`, ids, b.streams, b.expected).Scan(&known, &stale)
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	outcomes := map[uuid.UUID]Outcome{}
	if len(known) > 0 {
		if outcomes, err = l.Outcomes(ctx, known...); err != nil {
			return nil, err
		}
	}
	moved := map[string]bool{}
	for _, s := range stale {
		moved[s] = true
	}
	var left []item
	for _, it := range items {
		if o, ok := outcomes[it.Outcome.Command]; ok {
			*it.result = Result{Outcome: o, Err: ErrDuplicate}
			moved[it.Outcome.Stream] = true // what follows in this stream was decided on top of it
		} else if moved[it.Outcome.Stream] || moved[it.Beside] {
			it.result.Err = ErrConflict
		} else {
			left = append(left, it)
		}
	}
	return left, nil
}

// batch is the entries of one transaction, as the arguments of append_events.
type batch struct {
	items       []item
	at          time.Time
	streams     []string // each stream once, and the version that it must have
	expected    []int64
	first, last []int64 // of each item, counted from 1 within the batch; 0: no events
	recorded    []events.Recorded
	arguments   [][]byte
}

func newBatch(items []item, at time.Time) *batch {
	b := &batch{
		items: items, at: at, first: make([]int64, len(items)), last: make([]int64, len(items)),
		recorded: make([]events.Recorded, 0, len(items)),
	}
	place := make(map[string]int, len(items)) // stream → index
	var versions, sFirst, sLast []int64
	estreams, eversions, types, data := texts(), bigints(), texts(), texts()
	ecommands, correlations, causations, eactors := uuids(), uuids(), bigints(), texts()
	ids, names, streams, actors, status := uuids(), texts(), texts(), texts(), texts()
	first, last, digests, details := bigints(), bigints(), texts(), texts()
	var n int64
	for i := range items {
		it := &items[i]
		o := &it.Outcome
		s, ok := place[o.Stream]
		if !ok {
			s = len(b.streams)
			place[o.Stream] = s
			b.streams = append(b.streams, o.Stream)
			b.expected = append(b.expected, it.Expected)
			versions = append(versions, it.Expected)
			sFirst, sLast = append(sFirst, 0), append(sLast, 0)
		}
		if versions[s] != it.Expected {
			// The entries of this stream do not follow each other: whoever decided this one did not know the one before.
			b.expected[s] = -1
		}
		for k, ev := range it.Events {
			n++
			versions[s]++
			if b.first[i] == 0 {
				b.first[i] = n
			}
			if sFirst[s] == 0 {
				sFirst[s] = n
			}
			b.last[i], sLast[s] = n, n
			estreams.text(o.Stream)
			eversions.bigint(versions[s])
			types.text(ev.Name())
			data.text(it.data[k])
			ecommands.uuid(o.Command)
			correlations.uuid(it.Correlation)
			causations.bigint(it.Causation)
			eactors.text(o.Actor)
			b.recorded = append(b.recorded, events.Recorded{
				Position: n, Stream: o.Stream, Version: versions[s], Command: o.Command, Correlation: it.Correlation,
				Causation: it.Causation, Actor: o.Actor, Time: at, Size: len(it.data[k]), Event: ev,
			})
		}
		ids.uuid(o.Command)
		names.text(o.Name)
		streams.text(o.Stream)
		actors.text(o.Actor)
		status.text(string(o.Status))
		first.bigint(b.first[i])
		last.bigint(b.last[i])
		digests.text(o.Digest)
		details.text(it.detail)
	}
	for _, it := range items {
		s, ok := place[it.Beside]
		switch {
		case it.Beside == "":
		case !ok:
			place[it.Beside] = len(b.streams)
			b.streams, b.expected = append(b.streams, it.Beside), append(b.expected, it.BesideVersion)
			versions, sFirst, sLast = append(versions, it.BesideVersion), append(sFirst, 0), append(sLast, 0)
		case sFirst[s] == 0 && versions[s] != it.BesideVersion:
			b.expected[s] = -1
			// A stream that this batch writes was decided in the same order, and is compared where it is written.
		}
	}
	newS, newVersion, newFirst, newLast := texts(), bigints(), bigints(), bigints()
	oldS, oldExpected, oldVersion, oldLast := texts(), bigints(), bigints(), bigints()
	readS, readExpected := texts(), bigints()
	for s, name := range b.streams {
		switch {
		case sFirst[s] == 0:
			readS.text(name)
			readExpected.bigint(b.expected[s])
		case b.expected[s] == 0:
			newS.text(name)
			newVersion.bigint(versions[s])
			newFirst.bigint(sFirst[s])
			newLast.bigint(sLast[s])
		default:
			oldS.text(name)
			oldExpected.bigint(b.expected[s])
			oldVersion.bigint(versions[s])
			oldLast.bigint(sLast[s])
		}
	}
	b.arguments = append(b.arguments, timestamp(at))
	for _, a := range []*array{
		ids, names, streams, actors, status, first, last, digests, details,
		newS, newVersion, newFirst, newLast, oldS, oldExpected, oldVersion, oldLast, readS, readExpected,
		estreams, eversions, types, data, ecommands, correlations, causations, eactors,
	} {
		b.arguments = append(b.arguments, a.encoded())
	}
	return b
}

const appendSQL = `select append_events($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25,$26,$27,$28)`

var binaryFormat = []int16{1} // of all arguments, and of all results

// write runs the batch and tells everybody when it is committed.
func (l *Log) write(ctx context.Context, b *batch) error {
	if err := l.makePartitions(ctx, int64(len(b.recorded))); err != nil {
		return err
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Conn().Prepare(ctx, "append", appendSQL); err != nil { // once for each connection
		return err
	}
	begin := time.Now()
	r := conn.Conn().PgConn().ExecPrepared(ctx, "append", b.arguments, binaryFormat, binaryFormat).Read()
	if r.Err != nil {
		return r.Err
	}
	head := int64(be.Uint64(r.Rows[0][0]))
	for i := range b.items {
		o := b.items[i].Outcome
		o.Time = b.at
		if b.first[i] > 0 {
			o.First, o.Last = head+b.first[i], head+b.last[i]
		}
		*b.items[i].result = Result{Outcome: o}
	}
	for i := range b.recorded {
		b.recorded[i].Position += head
	}
	if l.told.Appended != nil {
		outcomes := make([]Outcome, len(b.items))
		for i, it := range b.items {
			outcomes[i] = it.result.Outcome
		}
		l.told.Appended(outcomes, len(b.recorded), begin)
	}
	if len(b.recorded) > 0 {
		l.tail.push(b.recorded)
	}
	l.tell()
	return nil
}

// clock returns the time for the next batch: positions in order have times in order, within this process.
func (l *Log) clock() time.Time {
	if now := time.Now().UTC().Truncate(time.Microsecond); now.After(l.now) {
		l.now = now
	}
	return l.now
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
