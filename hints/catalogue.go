package hints

import (
	"embed"
	"slices"
	"sync"

	"github.com/wheelrefinery/refinery/events"
)

//go:embed catalogue/*.yaml
var catalogue embed.FS

// Catalogue is the list that the program brings. The list is the caller's, the lists within its hints are everybody's.
func Catalogue() []events.Hint { return slices.Clone(shipped()) }

var shipped = sync.OnceValue(func() (list []events.Hint) {
	files, err := catalogue.ReadDir("catalogue")
	if err != nil {
		panic(err) // the files are part of the program
	}
	for _, f := range files {
		data, err := catalogue.ReadFile("catalogue/" + f.Name())
		if err != nil {
			panic(err)
		}
		entries, err := Parse(data)
		if err != nil {
			panic(f.Name() + ": " + err.Error())
		}
		for _, e := range entries {
			if e.Err != nil {
				panic(f.Name() + ": " + e.Hint.ID + ": " + e.Err.Error())
			}
			list = append(list, e.Hint)
		}
	}
	return list
})
