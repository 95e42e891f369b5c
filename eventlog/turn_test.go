package eventlog_test

import (
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// Processes that append take turns; one that is alone waits for nobody, and one that keeps its turn is not waited for for long.
func TestTurn(t *testing.T) {
	pool := pgtest.New(t)
	here, there := open(t, pool), open(t, pool)
	version := int64(0)
	append1 := func() {
		t.Helper()
		appendOK(t, here, entry("queue/here", version, 1))
		appendOK(t, there, entry("queue/there", version, 1))
		version++
	}
	turn := func() chan func() {
		took := make(chan func(), 1)
		go func() { took <- there.Turn(t.Context()) }()
		return took
	}
	await := func(took chan func(), most time.Duration) func() {
		t.Helper()
		select {
		case done := <-took:
			return done
		case <-time.After(most):
			t.Fatalf("no turn after %v", most)
			return nil
		}
	}

	alone := here.Turn(t.Context())
	await(turn(), 5*time.Second)()
	alone()

	append1()
	append1() // now each knows of the other
	done := here.Turn(t.Context())
	took := turn()
	select {
	case <-took:
		t.Fatal("both are in a turn")
	case <-time.After(50 * time.Millisecond):
	}
	done()
	await(took, 5*time.Second)()

	stuck := here.Turn(t.Context())
	begin := time.Now()
	await(turn(), 5*time.Second)()
	if waited := time.Since(begin); waited < 90*time.Millisecond {
		t.Errorf("it waited %v for one that is stuck", waited)
	}
	begin = time.Now()
	for range 10 {
		await(turn(), 5*time.Second)()
	}
	if waited := time.Since(begin); waited > 90*time.Millisecond {
		t.Errorf("it waits again: %v", waited)
	}
	stuck()

	var locks int
	err := pool.QueryRow(t.Context(), `select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`).Scan(&locks)
	if err != nil || locks != 0 {
		t.Errorf("%d locks are left, %v", locks, err)
	}
}
