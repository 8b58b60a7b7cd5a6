// Kstatus asks the code of kpt and Flux what it makes of objects.
//
// Input (stdin, JSON): {"objects": [{...}, ...], "expressions": {"current": "...", "inProgress": "...", "failed":
// "..."}}. Without expressions the answer is kstatus' (sigs.k8s.io/cli-utils); with them it is that of Flux'
// healthCheckExprs. Output: one JSON object per line and object, {"status": "Current", "message": "..."}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type input struct {
	Objects     []json.RawMessage                 `json:"objects"`
	Expressions *kustomize.HealthCheckExpressions `json:"expressions"`
}

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func judge(object *unstructured.Unstructured, expressions *cel.StatusEvaluator) (verdict, error) {
	if expressions != nil {
		told, err := expressions.Evaluate(context.Background(), object)
		if err != nil {
			return verdict{}, err
		}
		return verdict{Status: told.Status.String(), Message: told.Message}, nil
	}
	told, err := status.Compute(object)
	if err != nil {
		return verdict{}, err
	}
	return verdict{Status: told.Status.String(), Message: told.Message}, nil
}

func run() error {
	var given input
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return fmt.Errorf("reading stdin: %w", err)
	}
	var expressions *cel.StatusEvaluator
	if given.Expressions != nil {
		made, err := cel.NewStatusEvaluator(given.Expressions)
		if err != nil {
			return err
		}
		expressions = made
	}
	out := json.NewEncoder(os.Stdout)
	for number, text := range given.Objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(text); err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		answer, err := judge(object, expressions)
		if err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
