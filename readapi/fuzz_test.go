package readapi

import (
	"testing"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// A cursor is one of ours to the letter, or refused; and one of ours is that of its list alone.
func FuzzCursor(f *testing.F) {
	for _, at := range [][]int64{{1}, {0}, {-1 << 63}, {3, 4}} {
		f.Add(buildList.encode(at))
		f.Add(queueList.encode(at))
	}
	f.Add("")
	f.Add("====")
	f.Fuzz(func(t *testing.T, cursor string) {
		taken := 0
		try := func(at []int64, err error, encode func([]int64) string) {
			if err != nil {
				if fault.CodeOf(err) != fault.Invalid {
					t.Fatal(err)
				}
				return
			}
			if taken++; encode(at) != cursor {
				t.Fatalf("%q is taken for %v, which is %q", cursor, at, encode(at))
			}
		}
		at, err := buildList.decode(cursor)
		try(at, err, buildList.encode)
		at, err = queueList.decode(cursor)
		try(at, err, queueList.encode)
		at, err = artifactList.decode(cursor)
		try(at, err, artifactList.encode)
		if taken > 1 {
			t.Fatalf("%q is taken by %d lists", cursor, taken)
		}
	})
}
