package gather_test

import (
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/gather"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What arrives while a write is under way is written together, in order, up to the limit; a larger request goes alone; Close writes what
// waits.
func TestGather(t *testing.T) {
	begun, goOn := make(chan []int, 10), make(chan struct{})
	odd := errors.New("odd")
	w := gather.New(10, func(batch []gather.Request[int]) {
		var all []int
		for _, r := range batch {
			all = append(all, r.What)
		}
		begun <- all
		<-goOn
		for _, r := range batch {
			if r.What%2 == 1 {
				r.Answer(odd)
			} else {
				r.Answer(nil)
			}
		}
	})
	answers := make(chan error, 10)
	write := func(what, size int) {
		queued := w.Waiting()
		go func() { answers <- w.Write(what, size) }()
		for w.Waiting() == queued { // so that the order is known
		}
	}
	go func() { answers <- w.Write(0, 1) }()
	if got := <-begun; !slices.Equal(got, []int{0}) {
		t.Errorf("first %v", got)
	}
	for i, size := range []int{4, 6, 1, 99, 1} {
		write(i+1, size)
	}
	closed := make(chan struct{})
	go func() { w.Close(); close(closed) }()
	for _, want := range [][]int{{1, 2}, {3}, {4}, {5}} {
		goOn <- struct{}{}
		if got := <-begun; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	goOn <- struct{}{}
	<-closed
	failed := 0
	for range 6 {
		if err := <-answers; errors.Is(err, odd) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 3 {
		t.Errorf("%d were answered with an error, want 3", failed)
	}
	if err := w.Write(6, 1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
