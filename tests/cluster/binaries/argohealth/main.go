// Argohealth asks Argo CD's own code what it makes of the health of objects.
//
// Input (stdin, JSON): {"configMap": {key: value, ...}, "objects": [{...}, ...]}. `configMap` is the data of argocd-cm;
// the same settings code that the application controller runs reads it. Output: one JSON object per line and object,
// {"status": "Healthy", "message": "..."}; "none" where Argo CD has no opinion.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/argoproj/gitops-engine/pkg/health"
	log "github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/argo-cd/v3/util/settings"
)

const namespace = "argocd"

type input struct {
	ConfigMap map[string]string `json:"configMap"`
	Objects   []json.RawMessage `json:"objects"`
}

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func run() error {
	log.SetLevel(log.ErrorLevel)
	var given input
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return fmt.Errorf("reading stdin: %w", err)
	}
	// The settings manager reads the ConfigMap and the Secret by name and label; nothing else is asked of the cluster.
	labels := map[string]string{"app.kubernetes.io/part-of": "argocd"}
	clients := fake.NewClientset(
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "argocd-cm", Namespace: namespace, Labels: labels},
			Data:       given.ConfigMap,
		},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "argocd-secret", Namespace: namespace, Labels: labels}},
	)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	overrides, err := settings.NewSettingsManager(ctx, clients, namespace).GetResourceOverrides()
	if err != nil {
		return fmt.Errorf("argocd-cm: %w", err)
	}
	out := json.NewEncoder(os.Stdout)
	for number, text := range given.Objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(text); err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		told, err := health.GetResourceHealth(object, lua.ResourceHealthOverrides(overrides))
		if err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		answer := verdict{Status: "none"}
		if told != nil {
			answer = verdict{Status: string(told.Status), Message: told.Message}
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
