package worker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
	problems "github.com/wheelrefinery/refinery/internal/fault"
)

// addition is what recipes give a build beside what it asks for itself.
type addition struct {
	env          map[string]string
	requirements []string // of the build
	limits       []string // constraints of the build requirements
}

// apply does what the recipes of a job say. Packages of the distribution that are missing are installed, or fail the build where that is
// not allowed.
func (w *Worker) apply(ctx context.Context, job *api.Job, log *logStream) (addition, error) {
	add := addition{env: map[string]string{}}
	for _, r := range job.Recipes {
		if err := allowed(r); err != nil {
			return add, &fault{Class: classOther, Reason: fmt.Sprintf("a recipe of the kind %s is not allowed: %v", r.Kind, err)}
		}
		switch r.Kind {
		case api.RecipeKindEnv:
			for _, item := range r.Items {
				name, value, _ := strings.Cut(item, "=")
				add.env[name] = value
			}
			log.say(ctx, "recipe: %s", strings.Join(r.Items, " "))
		case api.RecipeKindPip:
			add.requirements = append(add.requirements, r.Items...)
			log.say(ctx, "recipe: build with %s", strings.Join(r.Items, " "))
		case api.RecipeKindConstraint:
			add.limits = append(add.limits, r.Items...)
			log.say(ctx, "recipe: build requirements within %s", strings.Join(r.Items, " "))
		case api.RecipeKindApt, api.RecipeKindDnf:
			if err := w.packages(ctx, job, r, log); err != nil {
				return add, err
			}
		case api.RecipeKindVersion: // nothing to do: another version builds
		default:
			log.say(ctx, "recipe: this worker does not know the kind %s", r.Kind)
		}
	}
	return add, nil
}

// allowed checks a recipe as the control plane did, since this machine is not the control plane's. What is of no known kind is passed over.
func allowed(r api.Recipe) error {
	if !slices.Contains(hints.RecipeKinds, string(r.Kind)) {
		return nil
	}
	var k problems.Checks
	hints.CheckRecipe(&k, "", events.Recipe{Kind: string(r.Kind), Items: r.Items})
	return k.Err()
}
