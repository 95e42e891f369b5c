package eventlog

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestPrune(t *testing.T) {
	pool := pgtest.New(t)
	l, err := Open(t.Context(), pool, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 3000 // several pages of the table
	var ids []uuid.UUID
	for from := 0; from < n; from += 500 {
		entries := make([]Entry, 500)
		for i := range entries {
			entries[i] = Entry{
				Outcome: Outcome{Command: uuid.New(), Name: "test", Stream: fmt.Sprintf("queue/%d", from+i), Status: Applied, Digest: "d"},
				Events:  []events.Event{events.QueueResumed{}},
			}
			ids = append(ids, entries[i].Outcome.Command)
		}
		if _, err := l.Append(t.Context(), entries...); err != nil {
			t.Fatal(err)
		}
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	// The first two thousand are two months old.
	old := time.Now().Add(-60 * 24 * time.Hour)
	exec(`update commands set recorded_at = $1 where first_position <= 2000`, old)
	exec(`update events set recorded_at = $1 where position <= 2000`, old)
	prune := func(want int64) {
		t.Helper()
		gone, err := l.prune(t.Context(), 30*24*time.Hour, 0)
		if err != nil || gone != want {
			t.Fatalf("%d are gone, want %d, %v", gone, want, err)
		}
	}
	// A policy that has not seen all of them would send its commands again.
	exec(`insert into followers (name, position, leased_until) values ('policy:x', 0, 'infinity'), ('policy:y', 3000, 'infinity'), ('policy:gone', 0, now())`)
	prune(0)
	exec(`update followers set position = 2000 where name = 'policy:x'`)
	prune(2000)
	prune(0)
	left, err := l.Outcomes(t.Context(), ids...)
	if err != nil || len(left) != 1000 {
		t.Errorf("%d are left, %v", len(left), err)
	}
	// Streams and events are whole, and a command that is known still is.
	if all, err := l.Read(t.Context(), 0, n); err != nil || len(all) != n {
		t.Errorf("%d events, %v", len(all), err)
	}
	again, err := l.Append(t.Context(), Entry{Outcome: Outcome{Command: ids[n-1], Name: "test", Stream: "queue/2999", Status: Applied}, Expected: 1})
	if err != nil || again[0].Err != ErrDuplicate {
		t.Errorf("%+v, %v", again, err)
	}
	// The walk reads pages, in order, and no index.
	var plan []string
	rows, err := pool.Query(t.Context(), `explain delete from commands where ctid >= '(0,0)' and ctid < '(256,0)' and recorded_at < now()`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, line)
	}
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "Tid Range Scan") {
		t.Errorf("%s", text)
	}
}
