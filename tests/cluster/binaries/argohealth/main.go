// Argohealth asks Argo CD's own code what it makes of objects: their health, and whether they are in sync with Git.
//
// Input (stdin, JSON): {"configMap": {key: value, ...}, "objects": [{...}, ...], "pairs": [{"git": {...}, "live":
// {...}}, ...]}. `configMap` is the data of argocd-cm; the same settings code that the application controller runs reads
// it. Output: one JSON object per line; for an object {"status": "Healthy", "message": "..."}, "none" where Argo CD has
// no opinion; for a pair {"status": "Synced"}, or "OutOfSync" with the object that a sync would make as the message. The
// diff is the one Argo CD makes by default, without asking the API server.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/argoproj/gitops-engine/pkg/health"
	log "github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/argo/diff"
	"github.com/argoproj/argo-cd/v3/util/argo/normalizers"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/argo-cd/v3/util/settings"
)

const namespace = "argocd"

type input struct {
	ConfigMap map[string]string `json:"configMap"`
	Objects   []json.RawMessage `json:"objects"`
	Pairs     []pair            `json:"pairs"`
}

type pair struct {
	Git  json.RawMessage `json:"git"`
	Live json.RawMessage `json:"live"`
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
	differ, err := diff.NewDiffConfigBuilder().
		WithDiffSettings(nil, overrides, true, normalizers.IgnoreNormalizerOpts{}).
		WithTracking("app.kubernetes.io/instance", string(v1alpha1.TrackingMethodAnnotation)).
		WithNoCache().
		Build()
	if err != nil {
		return err
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
	for number, given := range given.Pairs {
		git, live := &unstructured.Unstructured{}, &unstructured.Unstructured{}
		if err := errors.Join(git.UnmarshalJSON(given.Git), live.UnmarshalJSON(given.Live)); err != nil {
			return fmt.Errorf("pair %d: %w", number, err)
		}
		told, err := diff.StateDiff(live, git, differ)
		if err != nil {
			return fmt.Errorf("pair %d: %w", number, err)
		}
		answer := verdict{Status: string(v1alpha1.SyncStatusCodeSynced)}
		if told.Modified {
			answer = verdict{Status: string(v1alpha1.SyncStatusCodeOutOfSync), Message: string(told.PredictedLive)}
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
