package main

import (
	"sync"
	"testing"
)

// Processes that start at the same moment each get a name of their own.
func TestProcessesOfOneFolderHaveNames(t *testing.T) {
	const together = 8
	for range 200 {
		dir := t.TempDir()
		var planes [together]plane
		var names [together]string
		var wg sync.WaitGroup
		for i := range planes {
			wg.Go(func() {
				planes[i].dir = dir
				var err error
				if names[i], err = planes[i].name(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		distinct := map[string]bool{}
		for _, n := range names {
			distinct[n] = true
		}
		if len(distinct) != together {
			t.Errorf("%d processes have the names %v", together, names)
		}
		for i := range planes {
			if err := planes[i].stop(); err != nil {
				t.Error(err)
			}
		}
	}
}
